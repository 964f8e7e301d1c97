"""Two hundred downloads at once: all of them arrive whole, and the rest of the API answers meanwhile."""

import hashlib
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from random import Random

import pytest
import requests

from tests.conftest import Caller
from tests.files.server.site import SECONDS, Site
from tests.servers import AppServer

CONTENT = 20 * 1024 * 1024
DOWNLOADS = 200
READERS = 16
BLOCK = 64 * 1024
# With too few threads another request waits until a download has ended, and these end when the test wants it.
PATIENCE = 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_200_downloads_whose_readers_pause_leave_the_api_answering_and_all_arrive_whole(site: Site) -> None:
    content = Random(0).randbytes(CONTENT)
    caller = site.sign_up()
    with site.server() as server, ExitStack() as opened:
        path = upload(server, caller, content)
        # Each has its headers before the next begins, and then nobody reads on.
        downloads = [begin(opened, server, path, caller) for _ in range(DOWNLOADS)]
        for _ in range(20):
            ask_for_something_else(server, caller)

        with ThreadPoolExecutor(READERS) as threads:
            ends = [threads.submit(read_to_the_end, download) for download in downloads]
            while not all(end.done() for end in ends):
                ask_for_something_else(server, caller)
    assert {end.result() for end in ends} == {(200, hashlib.sha256(content).hexdigest())}


def upload(server: AppServer, caller: Caller, content: bytes) -> str:
    """Upload a file and return the path of its content."""
    headers = {**caller, "Content-Type": "application/octet-stream"}
    url = f"{server.url}/v1/files/raw?filename=large.bin"
    response = requests.post(url, data=content, headers=headers, timeout=SECONDS)
    assert response.status_code == 201
    return f"/v1/files/{response.json()['data']['id']}/content"


def begin(opened: ExitStack, server: AppServer, path: str, caller: Caller) -> HTTPResponse:
    """Begin a download, and read its headers."""
    connection = opened.enter_context(closing(HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)))
    # Little of the file fits between the server and us, as when the network is slow.
    connection.sock = socket.socket()
    connection.sock.settimeout(SECONDS)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
    connection.sock.connect(("127.0.0.1", server.port))
    connection.request("GET", path, headers=caller)
    return opened.enter_context(connection.getresponse())


def read_to_the_end(download: HTTPResponse) -> tuple[int, str]:
    """Return the status, and the SHA-256 of all that came."""
    digest = hashlib.sha256()
    while block := download.read(BLOCK):
        digest.update(block)
    return download.status, digest.hexdigest()


def ask_for_something_else(server: AppServer, caller: Caller) -> None:
    """Ask what takes a thread, the database and no time."""
    assert requests.get(f"{server.url}/v1/users/me", headers=caller, timeout=PATIENCE).status_code == 200
