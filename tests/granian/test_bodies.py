"""Bodies under granian: none that was cut off is taken for a whole one, and who is refused hears of it."""

import os
import socket
import struct
from pathlib import Path

import pytest
import requests

from tests.granian.client import (
    BINARY,
    CHUNKED,
    JSON,
    ME,
    RAW,
    SIZE,
    check_nothing_is_stored,
    chunk,
    headers_of,
    name_of,
)
from tests.http.client import connect, eventually, raw, raw_problem, raw_request, read_answer

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("granian")]

CUT_JSON = b'{"name": "Cut"}'
CUTS = {
    "half of the length": ("Content-Length: 100", b'{"name', 400, "incomplete_body"),
    "valid JSON, and less than the length": ("Content-Length: 100", CUT_JSON, 400, "incomplete_body"),
    "nothing of the length": ("Content-Length: 100", b"", 400, "incomplete_body"),
    "half a chunk": (CHUNKED, b'f\r\n{"name', 411, "length_required"),
    "valid JSON without the last chunk": (CHUNKED, chunk(CUT_JSON), 411, "length_required"),
    "all chunks": (CHUNKED, chunk(CUT_JSON) + b"0\r\n\r\n", 411, "length_required"),
    "chunks behind a name with an underscore": ("Transfer_Encoding: chunked", chunk(CUT_JSON), 411, "length_required"),
    "chunks and a length": (f"{CHUNKED}\r\nContent-Length: 15", CUT_JSON, 411, "length_required"),
    "gzip, chunked": ("Transfer-Encoding: gzip, chunked", chunk(CUT_JSON), 411, "length_required"),
}


@pytest.mark.parametrize(("framing", "body", "status", "code"), CUTS.values(), ids=CUTS)
def test_a_cut_body_is_refused_and_has_no_effect(server, token, framing, body, status, code):
    request = raw_request(server.url, ME, method="PATCH", headers=headers_of(token, framing), body=body)
    is_whole = framing == CHUNKED and body.endswith(b"0\r\n\r\n")
    raw_problem(raw(server.url, request, half_close=not is_whole), ME, status, code)
    assert name_of(server, token) != "Cut"


@pytest.mark.parametrize("framing", [f"Content-Length: {SIZE}", CHUNKED])
@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_a_cut_upload_leaves_nothing(server, env, token, framing, ending):
    content = bytes(SIZE // 2)
    body = content if framing != CHUNKED else chunk(content)
    headers = headers_of(token, framing, content_type=BINARY)
    logged = server.log.count('"route": "/v1/files/raw"')
    with connect(server.url) as connection:
        connection.sendall(raw_request(server.url, RAW, method="POST", headers=headers, body=body))
        if ending == "rst":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.shutdown(socket.SHUT_WR)
            assert read_answer(connection, method="POST").status == (411 if framing == CHUNKED else 400)
    eventually(lambda: server.log.count('"route": "/v1/files/raw"') > logged or None, "the end of the upload")
    check_nothing_is_stored(server, token)
    assert [path for path in (Path(env["DATA_DIR"]) / "files").rglob("*") if path.is_file()] == []


def test_nothing_behind_refused_chunks_is_read(server, token):
    hidden = raw_request(server.url, "/v1/hidden")
    for framing in (CHUNKED, f"{CHUNKED}\r\nContent-Length: 5"):
        request = raw_request(server.url, ME, method="PATCH", headers=headers_of(token, framing)).replace(
            b"Connection: close\r\n", b""
        )
        with connect(server.url) as connection:
            connection.sendall(request + b"0\r\n\r\n" + hidden)
            said = connection.makefile("rb").read()
        assert said.count(b"HTTP/1.1 ") == 1
        assert said.startswith(b"HTTP/1.1 411 ")


def test_through_nginx_anything_may_come_in_chunks(server, token, front):
    authorized, content = {"Authorization": f"Bearer {token}"}, os.urandom(SIZE)
    name = requests.patch(
        front + ME, data=iter([b'{"name": ', b'"Chunks"}']), headers=authorized | {"Content-Type": JSON}, timeout=10
    )
    assert (name.status_code, name_of(server, token)) == (200, "Chunks")
    blocks = (content[start : start + 1000] for start in range(0, SIZE, 1000))
    kept = requests.post(front + RAW, data=blocks, headers=authorized | {"Content-Type": BINARY}, timeout=10)
    url = f"{front}/v1/files/{kept.json()['data']['id']}"
    assert requests.get(f"{url}/content", headers=authorized, timeout=10).content == content
    assert requests.delete(url, headers=authorized, timeout=10).status_code == 204


def test_through_nginx_a_cut_upload_in_chunks_leaves_nothing(server, token, front):
    headers = headers_of(token, CHUNKED, content_type=BINARY)
    with connect(front) as connection:
        connection.sendall(raw_request(front, RAW, method="POST", headers=headers, body=chunk(bytes(SIZE // 2))))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    check_nothing_is_stored(server, token)


@pytest.mark.parametrize("path", [ME, RAW])
@pytest.mark.parametrize("who", ["nobody", "ann"])
def test_who_is_refused_early_sees_the_answer(server, token, path, who):
    """Though much more of the body is on its way, which would reset the connection if nobody read it."""
    body = bytes(20_000_000)
    sent = {"Content-Type": JSON if path == ME else BINARY}
    if who == "ann":
        sent["Authorization"] = f"Bearer {token}"
    method = "PATCH" if path == ME else "POST"
    for _ in range(5):
        answer = requests.request(method, server.url + path, data=body, headers=sent, timeout=20)
        assert answer.status_code == (413 if who == "ann" else 401)
        assert answer.headers["Connection"] == "close"
