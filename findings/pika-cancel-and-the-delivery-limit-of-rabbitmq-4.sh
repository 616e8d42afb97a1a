#!/bin/bash
# A consumer of pika 1.4.4 (SelectConnection) on a quorum queue of RabbitMQ 4.0.5 (Debian 13).
# After basic_cancel, and in channel.close() and connection.close(), which cancel all consumers,
# pika answers each message that still arrives with basic.reject(requeue=True) and calls no
# callback. RabbitMQ counts each reject in x-delivery-count, and drops a message after 20 of them
# (the delivery limit of a quorum queue without one). Seen: 200 messages, prefetch 50, a consumer
# that is cancelled as soon as it is confirmed: after 21 times 150 messages are left, and no
# callback was called. A classic queue keeps all 200.
# It matters to consumers that are started and stopped in front of a backlog (restarts, autoscaling,
# tests): the oldest messages are gone, and nothing in the client tells of it. A consumer that stops
# without loss lets the prefetch fill before it cancels, or has a queue with delivery limit -1.
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


def consume_and_cancel(queue, seen):
    """Cancel a consumer when RabbitMQ confirms it; close everything as one should."""

    def on_connection(connection):
        connection.channel(on_open_callback=on_channel)

    def on_channel(channel):
        def on_limit(_answer):
            tag = channel.basic_consume(
                queue, lambda *message: seen.append(message),
                callback=lambda _: channel.basic_cancel(tag, callback=lambda _: wait(channel)),
            )

        channel.basic_qos(prefetch_count=50, callback=on_limit)

    def wait(channel):
        # on the same channel, so that what was on its way is there
        channel.queue_declare(queue, passive=True,
                              callback=lambda _: connection.ioloop.call_later(0.3, connection.close))

    connection = pika.SelectConnection(
        parameters, on_open_callback=on_connection,
        on_close_callback=lambda connection, _: connection.ioloop.stop(),
    )
    connection.ioloop.start()


left, seen = {}, []
for kind in ("classic", "quorum"):
    channel = admin.channel()
    channel.confirm_delivery()
    channel.queue_declare(kind, durable=True, arguments={"x-queue-type": kind})
    for number in range(200):
        channel.basic_publish("", kind, str(number).encode())
    for times in range(1, 22):
        consume_and_cancel(kind, seen)
        left[kind] = admin.channel().queue_declare(kind, passive=True).method.message_count
        if times in (1, 20, 21):
            print(f"{kind} queue, {times} times: {left[kind]} of 200 messages left, "
                  f"{len(seen)} callbacks")

assert not seen, len(seen)
assert left == {"classic": 200, "quorum": 150}, left
print("as stated: 50 messages are gone from the quorum queue, and no callback has seen one")
PYTHON
