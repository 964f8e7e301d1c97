"""WSGI middleware: a body that ends too early is an error, whatever server and framework make of it."""

from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected
from werkzeug.wsgi import get_content_length

from project.errors import IncompleteBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# How servers report a lost client or broken chunks: gunicorn's NoMoreData and all timeouts are OSErrors.
_BROKEN = (OSError, ParseException, ClientDisconnected)


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
        environ["wsgi.input"] = _Body(environ["wsgi.input"], get_content_length(environ))
        return self._app(environ, start_response)


class _Body:
    """The input stream of one request (PEP 3333); `length` None means that the stream knows its end."""

    def __init__(self, stream: IO[bytes], length: int | None) -> None:
        self._stream = stream
        self._left = length

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all; fewer only at the end of the body."""
        wanted = self._wanted(size)
        if wanted is None:
            return _reading(self._stream.read)
        data = _reading(self._stream.read, wanted) if wanted else b""
        while len(data) < wanted:
            # A stream may give less than it was asked for; nothing at all is the end.
            more = _reading(self._stream.read, wanted - len(data))
            if not more:
                break
            data += more
        if self._left is not None and len(data) < wanted:
            raise IncompleteBody()
        self._count(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Read up to the end of a line or `size` bytes."""
        wanted = self._wanted(size)
        if wanted is None:
            return _reading(self._stream.readline)
        line = _reading(self._stream.readline, wanted) if wanted else b""
        if self._left is not None and len(line) < wanted and not line.endswith(b"\n"):
            raise IncompleteBody()
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
            return self._left
        return size if self._left is None else min(size, self._left)

    def _count(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)


def _reading(read: Callable[..., bytes], *size: int) -> bytes:
    try:
        return read(*size)
    except _BROKEN as error:
        raise IncompleteBody() from error
