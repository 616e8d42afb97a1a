#!/bin/bash
# A body without Content-Length that ends with its connection: what HTTP/1.0 servers send, and others
# that say "Connection: close". The server stops in the middle of it and aborts the connection (a TCP
# reset, SO_LINGER 0). requests 2.34.2 reads it
#   directly, and behind nginx 1.26.3: ChunkedEncodingError (nginx sends chunks, and no last one)
#   behind HAProxy 3.0.11, in mode http and in mode tcp: 200, the half that was sent, and no error
# HAProxy ends its own connection to the client without a reset, and for such a body this says that it
# is complete. HAProxy knows better: its log has the state SD, as for a cut body with Content-Length,
# which every client notices. (HAProxy and nginx of Debian 13.)
# It matters to downloads that a server makes while it sends them (reports, zips, exports): the reset
# is the only sign by which a client can tell half of such a body from all of it. What a client
# notices in a test without a proxy, or with nginx, it takes for a whole file behind HAProxy.
set -euo pipefail
folder=$(mktemp -d)
export HOME=$folder
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check requests==2.34.2

# HAProxy and nginx of Debian 13, unpacked only, with their own C library
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
apt-get -qq install --download-only -y haproxy=3.0.11-\* nginx=1.26.3-\*
for package in haproxy nginx_ lib zlib1g; do
    for file in "$folder"/apt/archives/$package*.deb; do dpkg-deb --extract "$file" "$folder/tree"; done
done
libraries=$(dirname "$(find "$folder/tree/usr/lib" -name libc.so.6)")
loader=$(find "$libraries" -name 'ld-linux-*.so.*')
start() { exec "$loader" --library-path "$libraries" "$folder/tree/usr/sbin/$1" "${@:2}"; }

read -r origin_port nginx_port http_port tcp_port < <("$folder/venv/bin/python" -c '
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(each.getsockname()[1] for each in free))')
cat >"$folder/haproxy.cfg" <<CONF
global
  log stdout format raw local0
defaults
  log global
  timeout connect 30s
  timeout client 30s
  timeout server 30s
listen in_mode_http
  mode http
  option httplog
  bind 127.0.0.1:$http_port
  server origin 127.0.0.1:$origin_port
listen in_mode_tcp
  mode tcp
  option tcplog
  bind 127.0.0.1:$tcp_port
  server origin 127.0.0.1:$origin_port
CONF
cat >"$folder/nginx.conf" <<CONF
daemon off;
worker_processes 1;
pid $folder/nginx.pid;
error_log $folder/nginx.log;
events {}
http {
  access_log off;
  client_body_temp_path $folder/body;
  proxy_temp_path $folder/proxy;
  fastcgi_temp_path $folder/fastcgi;
  uwsgi_temp_path $folder/uwsgi;
  scgi_temp_path $folder/scgi;
  server {
    listen 127.0.0.1:$nginx_port;
    location / { proxy_pass http://127.0.0.1:$origin_port; }
  }
}
CONF
start haproxy -f "$folder/haproxy.cfg" >"$folder/haproxy.log" 2>&1 &
start nginx -c "$folder/nginx.conf" >"$folder/nginx.out" 2>&1 &
"$folder/venv/bin/python" - "$folder" "$origin_port" "$nginx_port" "$http_port" "$tcp_port" <<'PYTHON'
import re
import socket
import struct
import sys
import threading
import time

import requests

folder = sys.argv[1]
origin_port, nginx_port, http_port, tcp_port = map(int, sys.argv[2:])
HALF = bytes(100_000)
arrived = threading.Event()


def serve(connection):
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            received = connection.recv(65536)
            if not received:
                return
            request += received
        length = b"Content-Length: 200000\r\n" if b"/length" in request else b""
        connection.sendall(b"HTTP/1.0 200 OK\r\n" + length + b"\r\n" + HALF)
        arrived.wait(60)
        if b"/reset" in request or length:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def origin(server):
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


def wait(condition, what):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    sys.exit(f"no {what}")


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def outcome(port, path):
    arrived.clear()
    session = requests.Session()
    session.trust_env = False
    with session.get(f"http://127.0.0.1:{port}/{path}", stream=True, timeout=60) as response:
        assert response.status_code == 200, response
        n_bytes = 0
        try:
            for block in response.iter_content(1000):
                n_bytes += len(block)
                if n_bytes >= 90_000:  # the rest may wait in a buffer of nginx
                    arrived.set()
        except requests.RequestException as error:
            return type(error).__name__
        assert n_bytes >= 90_000, n_bytes
        return "no error"


threading.Thread(
    target=origin, args=(socket.create_server(("127.0.0.1", origin_port)),), daemon=True
).start()
ways = {
    "directly": origin_port,
    "nginx": nginx_port,
    "HAProxy, mode http": http_port,
    "HAProxy, mode tcp": tcp_port,
}
for port in ways.values():
    wait(lambda: answers(port), f"server at port {port}")
found = {
    path: {way: outcome(port, path) for way, port in ways.items()}
    for path in ("complete", "length", "reset")
}
for path, texts in found.items():
    print(f"{path}:", "; ".join(f"{way}: {text}" for way, text in texts.items()))


def states():
    """How HAProxy says that the requests ended, in mode http."""
    lines = open(f"{folder}/haproxy.log").read().splitlines()
    return {
        path: state
        for path in ("complete", "length", "reset")
        for line in lines
        if f"GET /{path} " in line
        for state in re.findall(r" ([A-Za-z-]{4}) \d+/\d+/", line)
    }


wait(lambda: len(states()) == 3, "three requests in the log of HAProxy")
print("states in the log of HAProxy:", states())
assert set(found["complete"].values()) == {"no error"}, found
assert set(found["length"].values()) == {"ChunkedEncodingError"}, found
assert found["reset"] == {
    "directly": "ChunkedEncodingError",
    "nginx": "ChunkedEncodingError",
    "HAProxy, mode http": "no error",
    "HAProxy, mode tcp": "no error",
}, found
assert states() == {"complete": "----", "length": "SD--", "reset": "SD--"}, states()
print("as stated: behind HAProxy the half of a body without length comes without an error")
PYTHON
