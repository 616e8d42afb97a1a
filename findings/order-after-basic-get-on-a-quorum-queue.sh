#!/bin/bash
# RabbitMQ 4.0.5 (Debian 13), a quorum queue, pika 1.4.4: 12 messages are read with basic_get, none
# is acknowledged, and the channel is closed, as scripts do that look at a queue without taking from
# it. A classic queue has all of them in their old order again. The quorum queue then delivers
# 0, 9, 10, 11, 1, 2, ... 8: each basic_get counts as a consumer of its own, named by its delivery
# tag as text, and the messages come back consumer by consumer in the order of these texts: "1",
# "10", "11", "12", "2", ... With fewer than ten messages nothing shows.
# It matters to peeking before a migration or an audit, to tests with few messages, and to consumers
# that compare what is delivered again with what they had: the order is no longer that of publishing.
set -euo pipefail
folder=$(mktemp -d)
export HOME=$folder ERL_EPMD_PORT=$((RANDOM % 10000 + 20000))
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; pkill -f "$folder" || true; rm -rf "$folder"' EXIT

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pika==1.4.4

# RabbitMQ 4.0.5 and Erlang of Debian 13, unpacked only, with their own C library
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/tree"
: >"$folder/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" \
    >"$folder/apt/sources.list"
cat >"$folder/apt/apt.conf" <<CONF
Dir::State "$folder/apt/";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt/";
Dir::Etc::SourceList "$folder/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
CONF
export APT_CONFIG="$folder/apt/apt.conf"
apt-get -qq update
apt-get -qq install --download-only -y rabbitmq-server=4.0.5-\*
for package in rabbitmq-server erlang lib zlib1g; do
    for file in "$folder"/apt/archives/$package*.deb; do dpkg-deb --extract "$file" "$folder/tree"; done
done
erlang=$folder/tree/usr/lib/erlang
sed -i "s|ROOTDIR=/usr/lib/erlang|ROOTDIR='$erlang'|" "$erlang/bin/erl"
libraries=$(dirname "$(find "$folder/tree/usr/lib" -name libc.so.6)")
loader=$(find "$libraries" -name 'ld-linux-*.so.*')
find "$erlang" -type f -perm -100 | while read -r program; do
    [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
    mv "$program" "$program.elf"
    printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 "$0" "%s.elf" "$@"\n' \
        "$loader" "$libraries" "$program" >"$program"
    chmod 755 "$program"
done

read -r amqp_port dist_port < <("$folder/venv/bin/python" -c '
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in free))')
cd "$folder"
"$erlang/bin/epmd" -daemon
echo "listeners.tcp.1 = 127.0.0.1:$amqp_port" >"$folder/rabbitmq.conf"
: >"$folder/plugins"
PATH=$erlang/bin:$PATH RABBITMQ_NODENAME=finding@localhost RABBITMQ_DIST_PORT=$dist_port \
    RABBITMQ_MNESIA_BASE=$folder/mnesia RABBITMQ_LOG_BASE=$folder/log \
    RABBITMQ_CONFIG_FILE=$folder/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$folder/plugins \
    RABBITMQ_CONF_ENV_FILE=$folder/none \
    "$folder"/tree/usr/lib/rabbitmq/lib/rabbitmq_server-4.0.5/sbin/rabbitmq-server \
    >"$folder/server.log" 2>&1 &

"$folder/venv/bin/python" - "$amqp_port" <<'PYTHON'
import sys
import time

import pika

parameters = pika.ConnectionParameters("127.0.0.1", int(sys.argv[1]))
for attempt in range(600):
    try:
        admin = pika.BlockingConnection(parameters)
        break
    except pika.exceptions.AMQPError:
        time.sleep(0.2)
else:
    sys.exit("RabbitMQ did not start")


def filled(kind, count):
    queue = f"{kind} {count}"
    channel = admin.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    for number in range(count):
        channel.basic_publish("", queue, str(number).encode())
    return queue


def taken(channel, queue, count):
    """Read with basic_get; a returned message needs a moment to be ready."""
    found = []
    while len(found) < count:
        frame, _, body = channel.basic_get(queue)
        if frame:
            found.append(int(body))
    return found


def order_after_get(kind, count):
    queue = filled(kind, count)
    channel = admin.channel()
    assert taken(channel, queue, count) == list(range(count))
    channel.close()
    return taken(admin.channel(), queue, count)


for kind in ("classic", "quorum"):
    for count in (9, 12):
        found = order_after_get(kind, count)
        print(f"{kind} queue, {count} times basic_get, channel closed: {found}")
        as_text = sorted(range(count), key=lambda number: str(number + 1))
        assert found == (as_text if kind == "quorum" else list(range(count)))
print("as stated: the quorum queue returns in the order of the tags as text")
PYTHON
