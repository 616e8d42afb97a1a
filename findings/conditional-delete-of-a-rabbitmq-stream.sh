#!/bin/bash
# queue.delete of AMQP 0-9-1 has two flags: if-empty refuses to delete a queue with messages, if-unused
# one with a consumer. RabbitMQ 4.0.5 (Debian 13), pika 1.4.4, 10 messages, one consumer:
#   classic queue: 406 "not empty" and 406 "in use", the queue stays
#   quorum queue:  540, such a deletion "is not supported", the queue stays
#   stream:        delete-ok with message_count 0, for each of the flags: the stream is deleted with
#                  its 10 messages, under its consumer, and no answer tells of it
# It matters to programs that remove queues nobody needs ("try to delete, the broker refuses if it is
# in use"). That is right for a queue of each other type; a stream it empties of its whole history.
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
        pika.BlockingConnection(parameters).close()
        break
    except pika.exceptions.AMQPError:
        time.sleep(0.2)
else:
    sys.exit("RabbitMQ did not start")


def read(reader, queue, count):
    """Take messages with a consumer that stays."""
    channel, bodies = reader.channel(), []
    channel.basic_qos(prefetch_count=2 * count)
    channel.basic_consume(
        queue,
        lambda _channel, _method, _properties, body: bodies.append(int(body)),
        arguments={"x-stream-offset": "first"} if queue.startswith("stream") else {},
    )
    while len(bodies) < count:
        reader.process_data_events(time_limit=1)
    return bodies


def deleted(queue, **flag):
    with pika.BlockingConnection(parameters) as connection:
        try:
            return connection.channel().queue_delete(queue, **flag).method.message_count
        except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker) as error:
            return f"refused, {error.reply_code}"


def is_there(queue):
    with pika.BlockingConnection(parameters) as connection:
        try:
            connection.channel().queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            assert error.reply_code == 404, error
            return False
        return True


found = {}
for kind in ("classic", "quorum", "stream"):
    for flag in ("if_empty", "if_unused"):
        queue = f"{kind} {flag}"
        writer, reader = pika.BlockingConnection(parameters), pika.BlockingConnection(parameters)
        channel = writer.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        for number in range(10):
            channel.basic_publish("", queue, str(number).encode())
        if flag == "if_unused":
            assert read(reader, queue, 10) == list(range(10))
        answer = deleted(queue, **{flag: True})
        found[kind, flag] = answer, is_there(queue)
        print(f"{kind}, {flag}: {answer}; it is there afterwards: {found[kind, flag][1]}")
        reader.close()
        writer.close()

assert found == {
    ("classic", "if_empty"): ("refused, 406", True),
    ("classic", "if_unused"): ("refused, 406", True),
    ("quorum", "if_empty"): ("refused, 540", True),
    ("quorum", "if_unused"): ("refused, 540", True),
    ("stream", "if_empty"): (0, False),
    ("stream", "if_unused"): (0, False),
}, found
print("as stated: a stream is deleted with its messages and under its consumer")
PYTHON
