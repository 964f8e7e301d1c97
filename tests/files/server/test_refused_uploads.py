"""Refusals that come before an upload is read: the client sees them, and its connection stays usable."""

from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
import requests
from requests import PreparedRequest

from tests.files.server.conftest import Make
from tests.files.server.site import SECONDS, Site
from tests.servers import AppServer

MAX_SIZE = 1024 * 1024
BLOCK = bytes(64 * 1024)
REFUSED = {
    "one byte too large": (MAX_SIZE + 1, True, (413, "file_too_large")),
    "20 times too large": (20 * MAX_SIZE, True, (413, "file_too_large")),
    "20 MiB without a token": (20 * MAX_SIZE, False, (401, "token_required")),
}
every_way = pytest.mark.parametrize("way", ["form", "raw", "stream"])
every_refusal = pytest.mark.parametrize(("size", "signed_in", "refusal"), REFUSED.values(), ids=list(REFUSED))


@pytest.fixture(scope="module")
def site(make_site: Make) -> Site:
    """An application whose files are small."""
    site = make_site("sqlite")
    return Site(site.app, {**site.env, "FILES_MAX_SIZE": str(MAX_SIZE)})


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[AppServer]:
    """Its server."""
    with site.server() as server:
        yield server


def in_blocks(size: int) -> Iterator[bytes]:
    """So many bytes, which clients send in chunks."""
    while size > 0:
        yield BLOCK[:size]
        size -= len(BLOCK)


def prepare(server: AppServer, caller: dict[str, str], way: str, size: int) -> PreparedRequest:
    """An upload of so many bytes."""
    url = f"{server.url}/v1/files"
    if way == "form":
        return requests.Request("POST", url, caller, files={"file": ("a.bin", bytes(size))}).prepare()
    data = bytes(size) if way == "raw" else in_blocks(size)
    return requests.Request("POST", f"{url}/raw?filename=a.bin", {**caller, "Content-Type": "a/b"}, data=data).prepare()


@every_way
@every_refusal
def test_a_client_is_told_why_its_upload_is_refused(
    site: Site, server: AppServer, way: str, size: int, signed_in: bool, refusal: tuple[int, str]
) -> None:
    with requests.Session() as client:
        upload = prepare(server, site.sign_up() if signed_in else {}, way, size)
        response = client.send(upload, timeout=SECONDS)
    assert (response.status_code, response.json()["code"]) == refusal


@every_way
@every_refusal
def test_the_connection_of_a_refused_upload_stays_usable(
    site: Site, server: AppServer, way: str, size: int, signed_in: bool, refusal: tuple[int, str]
) -> None:
    upload = prepare(server, site.sign_up() if signed_in else {}, way, size)
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        connection.connect()
        connection.auto_open = 0  # from here on it must not open another one
        for _ in range(2):
            body: Any = upload.body if isinstance(upload.body, bytes) else in_blocks(size)
            connection.request("POST", upload.path_url, body, dict(upload.headers), encode_chunked=True)
            response = connection.getresponse()
            response.read()
            assert response.status == refusal[0]
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
