"""The memory that large files take: blocks, never the file."""

import hashlib
import http.client
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import Caller
from tests.files.server.conftest import Make
from tests.files.server.site import SECONDS, Site
from tests.servers import AppServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")

MEBIBYTE = 1024 * 1024
BLOCK = bytes(range(256)) * 256
SIZE = 100 * MEBIBYTE  # the default limit
AT_MOST = 30 * MEBIBYTE
BOUNDARY = "a-boundary-of-the-tests"


@pytest.fixture(scope="module")
def site(make_site: Make) -> Site:
    """An application on SQLite: one process serves."""
    return make_site("sqlite")


@pytest.fixture(scope="module")
def caller(site: Site) -> Caller:
    """A signed-in account."""
    return site.sign_up()


class Memory:
    """The memory of the process that serves."""

    def __init__(self, server: AppServer) -> None:
        master = server.process.pid
        self._process = Path("/proc", Path(f"/proc/{master}/task/{master}/children").read_text().strip())
        # The peak is from now on (proc(5)).
        (self._process / "clear_refs").write_text("5")
        self._before = self._peak()

    def growth(self) -> int:
        """By how many bytes the peak has grown since."""
        return self._peak() - self._before

    def _peak(self) -> int:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (self._process / "status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024


def blocks() -> Iterator[bytes]:
    """The content of the file."""
    for _ in range(SIZE // len(BLOCK)):
        yield BLOCK


@cache
def sha256() -> str:
    """The SHA-256 of the content in hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks():
        digest.update(block)
    return digest.hexdigest()


def form() -> Iterator[bytes]:
    """A form with the file."""
    yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'.encode()
    yield from blocks()
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


RAW, FORM = "application/octet-stream", f"multipart/form-data; boundary={BOUNDARY}"
WAYS = {
    "raw": ("/v1/files/raw?filename=large.bin", RAW, blocks, {"Content-Length": str(SIZE)}),
    "raw in chunks": ("/v1/files/raw?filename=large.bin", RAW, blocks, {}),
    "form": ("/v1/files", FORM, form, {"Content-Length": str(sum(map(len, form())))}),
    "form in chunks": ("/v1/files", FORM, form, {}),
}


def upload(server: AppServer, caller: Caller, way: str) -> str:
    """Upload the file block by block, and return its path."""
    path, content_type, body, framing = WAYS[way]
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=SECONDS)
    # Without a length http.client sends in chunks what it iterates over.
    connection.request("POST", path, body(), {**caller, "Content-Type": content_type, **framing})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    assert answer.status == 201, told
    assert (told["data"]["size"], told["data"]["sha256"]) == (SIZE, sha256())
    return f"/v1/files/{told['data']['id']}"


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_of_100_mib_takes_less_than_30_mib(site: Site, caller: Caller, way: str) -> None:
    with site.server() as server:
        memory = Memory(server)
        upload(server, caller, way)
        assert memory.growth() < AT_MOST


def test_a_download_of_100_mib_takes_less_than_30_mib(site: Site, caller: Caller) -> None:
    with site.server() as server:
        path = upload(server, caller, "raw")
    with site.server() as server:
        memory = Memory(server)
        digest = hashlib.sha256()
        with requests.get(f"{server.url}{path}/content", headers=caller, stream=True, timeout=SECONDS) as response:
            for block in response.iter_content(len(BLOCK)):
                digest.update(block)
        assert (response.status_code, digest.hexdigest()) == (200, sha256())
        assert memory.growth() < AT_MOST
