"""An answer is on its way as a whole or not at all, also when the process is killed."""

import socket
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from project.gunicorn_worker import WholeResponse


def sent(body: Iterable[bytes], *headers: tuple[str, str], method: str = "GET", status: str = "200 OK") -> list[bytes]:
    """What goes out, packet by packet."""
    request = SimpleNamespace(method=method, version=(1, 1), headers=[], should_close=lambda: False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        with ours:
            response = WholeResponse(request, ours, Config())
            response.start_response(status, list(headers))
            for piece in body:
                response.write(piece)
            response.close()
        return list(iter(lambda: theirs.recv(1 << 20), b""))


def test_headers_and_body_go_together():
    [packet] = sent([b"{}"], ("Content-Length", "2"))
    head, _, body = packet.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 2" in head
    assert body == b"{}"


def test_more_of_a_body_follows():
    first, second = sent([b"one", b"two"], ("Content-Length", "6"))
    assert first.endswith(b"\r\n\r\none")
    assert second == b"two"


def test_pieces_of_unknown_length_are_framed():
    first, second, end = sent([b"", b"one", b"two"])
    assert b"Transfer-Encoding: chunked" in first
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert (second, end) == (b"3\r\ntwo\r\n", b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "status", "length"), [("GET", "204 No Content", "0"), ("HEAD", "200 OK", "7"), ("GET", "200 OK", "0")]
)
def test_an_answer_without_a_body_has_its_headers(method, status, length):
    [packet] = sent([], ("Content-Length", length), method=method, status=status)
    assert packet.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert packet.endswith(b"\r\n\r\n")
