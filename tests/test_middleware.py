import http.client
import io
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, NoMoreData
from werkzeug.exceptions import ClientDisconnected

from project.errors import IncompleteBody
from project.middleware import BodyLength, _Body
from tests.servers.process import free_port, running

ROOT = Path(__file__).parents[1]


class Pieces(io.RawIOBase):
    """A stream that hands out its pieces one at a time, as a socket does, and may fail at the end."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self._pieces = list(pieces)
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._pieces:
            if self._error:
                raise self._error
            return 0
        piece, self._pieces[0] = self._pieces[0][: len(buffer)], self._pieces[0][len(buffer) :]
        if not self._pieces[0]:
            del self._pieces[0]
        buffer[: len(piece)] = piece
        return len(piece)


def body_of(stream: Any, length: int | None) -> _Body:
    return _Body(stream, length)


READS: dict[str, Callable[[_Body], bytes]] = {
    "read()": lambda body: body.read(),
    "read(None)": lambda body: body.read(None),
    "read(4) until empty": lambda body: b"".join(iter(lambda: body.read(4), b"")),
    "read(1000)": lambda body: body.read(1000),
    "readline()": lambda body: b"".join(iter(body.readline, b"")),
    "readline(3)": lambda body: b"".join(iter(lambda: body.readline(3), b"")),
    "readlines()": lambda body: b"".join(body.readlines()),
    "for": b"".join,
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


# --- the stream -------------------------------------------------------------------------------------------


@every_read
@pytest.mark.parametrize("pieces", [[], [b"0123456"], [b"012", b"3456"], [b"01\n23\n", b"4"], [b"012345\n"]])
def test_a_short_body_raises_however_it_is_read(read, pieces):
    with pytest.raises(IncompleteBody):
        read(body_of(Pieces(*pieces), 100))


@every_read
@pytest.mark.parametrize("error", [NoMoreData(b""), ConnectionResetError(), TimeoutError(), ClientDisconnected()])
@pytest.mark.parametrize("length", [None, 100])
def test_a_connection_that_breaks_raises_however_it_is_read(read, error, length):
    with pytest.raises(IncompleteBody):
        read(body_of(Pieces(b"0123456", error=error), length))


@every_read
@pytest.mark.parametrize("error", [InvalidChunkSize(b"x"), ChunkMissingTerminator(b"x")])
def test_broken_chunks_raise_however_they_are_read(read, error):
    with pytest.raises(IncompleteBody):
        read(body_of(Pieces(b"0123456", error=error), None))


@every_read
@pytest.mark.parametrize("length", [None, 10])
def test_a_whole_body_passes_however_it_is_read(read, length):
    assert read(body_of(Pieces(b"01\n2", b"3", b"45\n6\n"), length)) == b"01\n2345\n6\n"


@every_read
def test_nothing_beyond_the_length_is_read(read):
    stream = Pieces(b"01\n23", b"45\nnext request")
    assert read(body_of(stream, 8)) == b"01\n2345\n"
    assert stream.read() == b"next request"


@every_read
def test_an_empty_body_does_not_touch_the_stream(read):
    assert read(body_of(Pieces(error=AssertionError("was read")), 0)) == b""


def test_a_mistake_in_the_server_is_not_hidden():
    with pytest.raises(AssertionError):
        body_of(Pieces(error=AssertionError()), None).read()


def test_readlines_stops_after_the_hint():
    body = body_of(Pieces(b"a\nb\nc\nd\n"), 8)
    assert body.readlines(3) == [b"a\n", b"b\n"]
    assert body.readlines(0) == [b"c\n", b"d\n"]


# --- under gunicorn ---------------------------------------------------------------------------------------


def make_app() -> Flask:
    """What the gunicorn of these tests serves: views that read a body in the ways there are."""
    app = Flask("small")
    app.extensions["readiness"] = {}  # deploy/gunicorn.conf.py adds to it
    app.wsgi_app = BodyLength(app.wsgi_app)  # type: ignore[method-assign]
    seen: list[str] = []

    @app.errorhandler(IncompleteBody)
    def incomplete(_error: IncompleteBody) -> tuple[str, int]:
        seen.append(f"{request.path} incomplete")
        return "incomplete", 400

    @app.post("/stream")
    def stream() -> str:
        return _size(request.stream.read())

    @app.post("/data")
    def data() -> str:
        return _size(request.get_data())

    @app.post("/form")
    def form() -> str:
        return _size(request.files["file"].read())

    @app.get("/seen")
    def tell() -> list[str]:
        return seen

    def _size(body: bytes) -> str:
        seen.append(f"{request.path} {len(body)}")
        return str(len(body))

    return app


@dataclass(frozen=True)
class Server:
    """A running gunicorn."""

    port: int

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def seen(self) -> list[str]:
        """What the views have seen so far, oldest first."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", "/seen")
            answer: list[str] = json.loads(connection.getresponse().read())
            return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Gunicorn with the configuration of production."""
    server = Server(free_port())
    address = ["--bind", f"127.0.0.1:{server.port}", "--workers", "1"]
    command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", *address]

    def is_ready() -> bool:
        try:
            return server.seen() == []
        except OSError:
            return False

    log = tmp_path_factory.mktemp("gunicorn") / "log"
    # Not SQLite, for which the server would run jobs, of which this application has none.
    env = {**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing"}
    with running([*command, "tests.test_middleware:make_app()"], log=log, ready=is_ready, cwd=ROOT, env=env):
        yield server


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def status_of(connection: socket.socket) -> int:
    """The status of the answer, or 0 when the connection ended without one."""
    answer = connection.makefile("rb").readline()
    return int(answer.split()[1]) if answer else 0


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"y" * 50 + b"\r\n--x--\r\n"
BODIES = {"/stream": b"0123456", "/data": b"0123456", "/form": FORM}
every_path = pytest.mark.parametrize("path", BODIES)


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def wait_for_next(server: Server, before: int) -> str:
    """What the view saw of a request whose client is gone."""
    for _ in range(500):
        if len(seen := server.seen()) > before:
            return seen[before]
    raise AssertionError("the view was never called")


@pytest.mark.server
@every_path
def test_the_view_sees_that_a_body_was_cut_by_the_end_of_the_connection(server, path):
    body = BODIES[path]
    with server.connect() as connection:
        connection.sendall(head(path, "Content-Type: multipart/form-data; boundary=x", "Content-Length: 1000") + body)
        connection.shutdown(socket.SHUT_WR)
        assert status_of(connection) == 400
    assert server.seen()[-1] == f"{path} incomplete"


@pytest.mark.server
@every_path
def test_the_view_sees_that_a_body_was_cut_by_a_reset(server, path):
    before = len(server.seen())
    connection = server.connect()
    connection.sendall(
        head(path, "Content-Type: multipart/form-data; boundary=x", "Content-Length: 1000") + BODIES[path]
    )
    reset(connection)
    assert wait_for_next(server, before) == f"{path} incomplete"


@pytest.mark.server
@pytest.mark.parametrize(
    "chunks",
    [
        b"",
        b"5",
        b"5\r\n01",
        b"5\r\n01234",
        b"5\r\n01234\r\n",
        b"5\r\n01234\r\n0\r\n",
        b"5\r\n01234xx0\r\n\r\n",
        b"z\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/stream", "/data"])
def test_the_view_sees_that_chunks_are_broken_or_not_ended(server, path, chunks):
    with server.connect() as connection:
        connection.sendall(head(path, "Transfer-Encoding: chunked") + chunks)
        connection.shutdown(socket.SHUT_WR)
        assert status_of(connection) == 400
    assert server.seen()[-1] == f"{path} incomplete"


@pytest.mark.server
@every_path
def test_a_whole_body_passes(server, path):
    body = BODIES[path]
    with server.connect() as connection:
        length = f"Content-Length: {len(body)}"
        connection.sendall(head(path, "Content-Type: multipart/form-data; boundary=x", length) + body)
        assert status_of(connection) == 200
    assert server.seen()[-1] == f"{path} {50 if path == '/form' else 7}"


@pytest.mark.server
@every_path
def test_a_whole_chunked_body_passes(server, path):
    body = BODIES[path]
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with server.connect() as connection:
        fields = ("Content-Type: multipart/form-data; boundary=x", "Transfer-Encoding: chunked")
        connection.sendall(head(path, *fields) + chunks)
        assert status_of(connection) == 200
    assert server.seen()[-1] == f"{path} {50 if path == '/form' else 7}"


@pytest.mark.server
def test_two_requests_on_one_connection_do_not_mix(server):
    one = head("/stream", "Content-Length: 7") + b"0123456"
    two = head("/stream", "Content-Length: 3") + b"abc"
    with server.connect() as connection:
        connection.sendall(one + two)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 2 and (more := connection.recv(4096)):
            answers += more
    assert server.seen()[-2:] == ["/stream 7", "/stream 3"]
