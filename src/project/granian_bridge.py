"""How requests that granian has read reach the application, and how its answers go back to it (PEP 3333).

granian's own way hands on the environment of the process as if it were the request's, gives a body that was cut off for
a whole one, and ends an answer that failed half-way as if it were complete. This one does none of these.
"""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, NoReturn, Protocol

from project.middleware import LINGER_BLOCK, LINGER_SECONDS, LengthRequired, Lingering
from project.refusals import refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

# The limit of gunicorn, though of what the escapes stand for. What is far beyond it granian refuses by itself.
MAX_ADDRESS = 8190
BLOCK = 64 * 1024
# How many answered requests are read on at a time. Nothing ends the wait for one but its client.
_lingering = threading.BoundedSemaphore(16)


class Exchange(Protocol):
    """What granian takes the answer of a request with."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes, /) -> None:
        """Send an answer that is there as a whole."""

    def response_iter(self, status: int, headers: list[tuple[str, str]], body: Any, /) -> None:
        """Send an answer block by block, until there is none or its client has gone."""


def bridge(app: "WSGIApplication", is_draining: Callable[[], object]) -> Callable[[Exchange, dict[str, Any]], int]:
    """Return what granian calls with each request; while the server drains, every answer ends its connection."""
    common = {
        "SCRIPT_NAME": "",
        "wsgi.errors": sys.stderr,
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": True,
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "wsgi.version": (1, 0),
    }

    def answer(exchange: Exchange, scope: dict[str, Any]) -> int:
        if len(scope["PATH_INFO"]) + len(scope["QUERY_STRING"]) > MAX_ADDRESS:
            status, headers, body = refusal("uri_too_long", scope["REMOTE_ADDR"])
            exchange.response_bytes(status, list(headers.items()), body)
            return status
        try:
            return _handle(app, {**common, **scope, "wsgi.input": _input(scope)}, exchange, scope, is_draining)
        except Exception:
            logger.exception("request_failed_outside_application")
            exchange.response_bytes(500, [("Connection", "close")], b"")  # nothing, if there was an answer already
            return 500

    return answer


def _handle(
    app: "WSGIApplication",
    environ: "WSGIEnvironment",
    exchange: Exchange,
    scope: dict[str, Any],
    is_draining: Callable[[], object],
) -> int:
    announced: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_exc_info: Any) -> Callable[[bytes], object]:
        announced.append((status, headers))
        return _write_nothing

    blocks = app(environ, start_response)
    is_unread = isinstance(blocks, Lingering)
    try:
        status, headers = int(announced[-1][0][:3]), announced[-1][1]
        if is_unread or is_draining():
            headers = [*headers, ("Connection", "close")]
        _send(exchange, status, headers, blocks, is_head=environ["REQUEST_METHOD"] == "HEAD")
    finally:
        if hasattr(blocks, "close"):
            blocks.close()
    if is_unread:
        _read_on(scope["wsgi.input"])
    return status


def _send(
    exchange: Exchange, status: int, headers: list[tuple[str, str]], blocks: Iterable[bytes], *, is_head: bool
) -> None:
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), None)
    if is_head or status in {204, 304}:
        exchange.response_bytes(status, headers, b"")
    elif length is None:
        # Where it fails half-way granian would end it as if it were complete, so nothing of it goes out before its end.
        with SpooledTemporaryFile(BLOCK) as file:
            file.writelines(blocks)
            length = file.tell()
            file.seek(0)
            headers = [*headers, ("Content-Length", str(length))]
            exchange.response_iter(status, headers, _blocks_of(iter(lambda: file.read(BLOCK), b"")))
    elif length <= BLOCK:
        body = b"".join(blocks)
        if len(body) != length:
            raise ValueError("the body of an answer is not as long as its Content-Length")
        exchange.response_bytes(status, headers, body)
    else:
        # One that is shorter than its length ends the connection, from which its client sees that it is not whole.
        exchange.response_iter(status, headers, _blocks_of(blocks))


def _blocks_of(blocks: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from blocks
    except Exception:
        # granian would log the text of the error, in which there may be data.
        logger.exception("answer_failed")


def _read_on(body: IO[bytes]) -> None:
    """Read what still comes of an answered request: closed on it, a client may never see the answer (RFC 9112 §9.6)."""
    if not _lingering.acquire(blocking=False):
        return
    try:
        deadline = time.monotonic() + LINGER_SECONDS
        while body.read(LINGER_BLOCK) and time.monotonic() < deadline:
            pass
    finally:
        _lingering.release()


def _input(scope: dict[str, Any]) -> IO[bytes]:
    if "HTTP_TRANSFER_ENCODING" in scope:
        return _Unending()  # type: ignore[return-value]
    return _Sized(scope["wsgi.input"]) if "CONTENT_LENGTH" in scope else io.BytesIO()  # type: ignore[return-value]


class _Sized(io.RawIOBase):
    """A body with a length. Of granian's own methods the others lose bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or all; fewer only at the end, and where the client has gone."""
        return self._stream.read(size) if size >= 0 else b"".join(iter(lambda: self._stream.read(BLOCK), b""))

    def readline(self, size: int | None = -1) -> bytes:
        """Read up to the end of a line or `size` bytes."""
        line = bytearray()
        while (size is None or size < 0 or len(line) < size) and (byte := self._stream.read(1)):
            line += byte
            if byte == b"\n":
                break
        return bytes(line)


class _Unending:
    """A body in chunks. granian says the same at their end and where the client has gone, so none of it is believed."""

    def read(self, *_size: Any) -> NoReturn:
        """Refuse it."""
        raise LengthRequired()

    readline = readlines = read

    def __iter__(self) -> Iterator[bytes]:
        raise LengthRequired()


def _write_nothing(_data: bytes) -> NoReturn:
    raise NotImplementedError("the application returns its answers")
