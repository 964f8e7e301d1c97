"""A throw-away S3 from moto: a real server, though it does not check signatures."""

import http.client
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlencode

from boto3.session import Session

from tests.servers.process import free_port, running, scratch_directory

REGION = "us-east-1"
# What boto3 reads, so that nothing of the developer's own configuration is used.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def run_s3() -> Iterator[str]:
    """Run a moto server that keeps nothing and give its endpoint."""
    port = free_port()
    with scratch_directory("project-s3-") as root:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        # Nothing of the developer's environment may decide how it runs.
        env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TMPDIR": str(root), **CREDENTIALS}
        with running(command, log=root / "log", ready=lambda: _answers(port), env=env):
            yield f"http://127.0.0.1:{port}"


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/moto-api/data.json")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def make_bucket(endpoint: str, name: str) -> str:
    """Make an empty bucket and give its STORAGE_URL, whose objects are below the prefix `files`."""
    _client(endpoint).create_bucket(Bucket=name)
    return f"s3://{name}/files?{urlencode({'endpoint': endpoint, 'region': REGION})}"


@cache
def _client(endpoint: str) -> Any:
    # Making one takes longer than the bucket.
    key, secret = (os.environ.get(name, "testing") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return Session(key, secret).client("s3", endpoint_url=endpoint, region_name=REGION)
