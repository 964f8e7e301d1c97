"""WSGI middleware: a body that ends too early is an error, whatever server and framework make of it."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import IO, TYPE_CHECKING

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected
from werkzeug.wsgi import get_content_length

from project.errors import AppError, IncompleteBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# How long, in seconds, an answered request is read on in all, and while nothing comes.
LINGER_SECONDS = 10
SILENCE_SECONDS = 1
LINGER_BLOCK = 64 * 1024

# How servers report a lost client or broken chunks: gunicorn's NoMoreData and all timeouts are OSErrors.
_BROKEN = (OSError, ParseException, ClientDisconnected)


class LengthRequired(AppError):
    """411: the body came in chunks, whose end this server cannot tell from a connection that was cut (RFC 9112 §8)."""

    status = HTTPStatus.LENGTH_REQUIRED
    code = "length_required"
    message = "The length of the body is required."
    cure = "Send Content-Length instead of Transfer-Encoding: chunked."


class BodyLength:
    """Gives the application a body that raises IncompleteBody when it is shorter than Content-Length says.

    gunicorn ends such a body quietly and tells Werkzeug not to check (`wsgi.input_terminated`), so a cut
    upload would look complete. A chunked body has no length: the server knows its end, and raises when it
    never comes.
    """

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Handle one request."""
        body = _Body(environ["wsgi.input"], get_content_length(environ))
        environ["wsgi.input"] = body
        answer = self._app(environ, start_response)
        has_body = bool(body.left) or "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "")
        return Lingering(answer, body, environ.get("gunicorn.socket")) if has_body and not body.ended else answer


class Lingering:
    """An answer given before the body was read: once it is sent, what still comes is read and thrown away.

    A server that closes a connection on which bytes are still arriving resets it, and most clients then never see
    the answer, such as the 413 to an upload that is too large (RFC 9112 §9.6 describes the cure).
    """

    def __init__(self, answer: Iterable[bytes], body: "_Body", connection: socket.socket | None) -> None:
        self._answer = answer
        self._body = body
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        """End the answer, which the server has sent by now, and read on for a while."""
        if hasattr(self._answer, "close"):
            self._answer.close()
        if self._connection is None:
            return
        self._connection.settimeout(SILENCE_SECONDS)
        # From outside of the reading, which a client may keep busy with a byte now and then.
        deadline = threading.Timer(LINGER_SECONDS, _end_input, [self._connection])
        deadline.start()
        try:
            with suppress(IncompleteBody):
                while self._body.read(LINGER_BLOCK):
                    pass
        finally:
            deadline.cancel()
            self._connection.settimeout(None)


def _end_input(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RD)


class _Body:
    """The input stream of one request (PEP 3333); `length` None means that the stream knows its end."""

    def __init__(self, stream: IO[bytes], length: int | None) -> None:
        self._stream = stream
        self.left = length
        self.ended = False  # by a client that has gone, or at the end of chunks

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all; fewer only at the end of the body."""
        wanted = self._wanted(size)
        if wanted is None:
            return self._reading(self._stream.read)
        data = self._reading(self._stream.read, wanted) if wanted else b""
        while len(data) < wanted:
            # A stream may give less than it was asked for; nothing at all is the end.
            more = self._reading(self._stream.read, wanted - len(data))
            if not more:
                break
            data += more
        if len(data) < wanted:
            self._end()
        self._count(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Read up to the end of a line or `size` bytes."""
        wanted = self._wanted(size)
        if wanted is None:
            return self._reading(self._stream.readline)
        line = self._reading(self._stream.readline, wanted) if wanted else b""
        if len(line) < wanted and not line.endswith(b"\n"):
            self._end()
        self._count(line)
        return line

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read lines until their sizes reach `hint`."""
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _wanted(self, size: int | None) -> int | None:
        """Return how many bytes to ask for; None is all of a body without a length."""
        if size is None or size < 0:
            return self.left
        return size if self.left is None else min(size, self.left)

    def _count(self, data: bytes) -> None:
        if self.left is not None:
            self.left -= len(data)

    def _end(self) -> None:
        """Note that the stream is at its end; with a length that is too early."""
        self.ended = True
        if self.left is not None:
            raise IncompleteBody()

    def _reading(self, read: Callable[..., bytes], *size: int) -> bytes:
        try:
            return read(*size)
        except _BROKEN as error:
            self.ended = True
            raise IncompleteBody() from error
