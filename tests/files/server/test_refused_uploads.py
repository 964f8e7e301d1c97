"""Refusals that come before an upload is read: the client sees them, and its connection stays usable."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from tests.files.server.conftest import Make
from tests.files.server.site import SECONDS, Site
from tests.servers import AppServer

MAX_SIZE = 1024 * 1024
BLOCK = bytes(64 * 1024)


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


class Client(requests.Session):
    """A client that keeps its one connection."""

    def __init__(self, server: AppServer) -> None:
        super().__init__()
        self.trust_env = False
        self._url = server.url
        self._adapter = HTTPAdapter()
        self.mount(server.url, self._adapter)

    def upload(self, way: str, size: int) -> requests.Response:
        """Upload so many bytes."""
        raw = {"url": f"{self._url}/v1/files/raw?filename=a.bin", "headers": {"Content-Type": "a/b"}}
        ways: dict[str, dict[str, Any]] = {
            "form": {"url": f"{self._url}/v1/files", "files": {"file": ("a.bin", bytes(size))}},
            "raw": {**raw, "data": bytes(size)},
            "stream": {**raw, "data": in_blocks(size)},
        }
        return self.post(timeout=SECONDS, **ways[way])

    def connections(self) -> int:
        """How many connections there have been."""
        pools = self._adapter.poolmanager.pools
        keys = pools.keys()  # the pools themselves refuse to be iterated over
        return sum(pools[key].num_connections for key in keys)

    def me(self) -> requests.Response:
        """GET /v1/users/me."""
        return self.get(f"{self._url}/v1/users/me", timeout=SECONDS)


def in_blocks(size: int) -> Iterator[bytes]:
    """So many bytes, which requests sends in chunks."""
    while size > 0:
        yield BLOCK[:size]
        size -= len(BLOCK)


@pytest.mark.parametrize("way", ["form", "raw", "stream"])
@pytest.mark.parametrize("size", [MAX_SIZE + 1, 20 * MAX_SIZE], ids=["by one byte", "twenty times"])
def test_an_upload_that_is_too_large_is_told_so_and_the_connection_stays(
    site: Site, server: AppServer, way: str, size: int
) -> None:
    with Client(server) as client:
        client.headers.update(site.sign_up())
        response = client.upload(way, size)
        assert (response.status_code, response.json()["code"]) == (413, "file_too_large")
        assert client.me().status_code == 200
        assert client.upload(way, 1000).status_code == 201
        assert client.connections() == 1


@pytest.mark.parametrize("way", ["form", "raw", "stream"])
def test_an_upload_of_20_mib_without_a_token_is_told_so_and_the_connection_stays(server: AppServer, way: str) -> None:
    with Client(server) as client:
        response = client.upload(way, 20 * MAX_SIZE)
        assert (response.status_code, response.json()["code"]) == (401, "token_required")
        assert client.me().status_code == 401
        assert client.connections() == 1
