"""What gunicorn does otherwise here: how it shares and keeps connections, refuses requests, and sends answers."""

import logging
import select
import socket
import time
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.http.wsgi import Response
from gunicorn.workers.gthread import ThreadWorker

from project.refusals import refusal

logger = logging.getLogger(__name__)

SEND_SECONDS = 1
# Seconds that a process with so many connections waits before it takes another.
COURTESY, MAX_COURTESY = 0.0002, 0.002
# How long the thread of a connection waits for its next request before it gives the connection back.
FOLLOWING_MS = 10
# How long the rest of a body is waited for that the application did not want, as long as gunicorn itself does.
UNREAD_SECONDS = 5


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker with threads, which leaves connections to others.

    Its refusals are problems; gunicorn's own page quotes the request, and is HTML.
    """

    nr_conns: int

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection, the later the more there are already.

        All processes are woken by one. Of many that come together, as those of a proxy do, the first would have the
        most, and keeps them: half of the server stood still.
        """
        if self.nr_conns:
            time.sleep(min(self.nr_conns * COURTESY, MAX_COURTESY))
        super().accept(listener)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer a request, and those that follow on its connection before long.

        By itself each goes from the main thread to another one and the connection back again, which costs as much as
        a short query.
        """
        kept = bool(super().handle_request(req, conn))
        while kept and self._follows(conn):
            # What is left of a body must not be taken for a request.
            if _has_body(req) and not conn.parser.finish_body(deadline=time.monotonic() + UNREAD_SECONDS):
                return False
            req = next(conn.parser)
            kept = bool(super().handle_request(req, conn))
        return kept

    def _follows(self, conn: Any) -> bool:
        """Tell whether another request comes soon; nobody else may need the thread meanwhile."""
        if not self.alive or self.nr_conns > self.cfg.threads:
            return False
        poller = select.poll()
        poller.register(conn.sock, select.POLLIN)
        return bool(poller.poll(FOLLOWING_MS))

    def handle_error(self, req: Any, client: socket.socket, addr: tuple[str, int] | str, exc: BaseException) -> None:
        """Answer a request that cannot be parsed; the server closes the connection then."""
        if isinstance(exc, ParseException):
            _refuse(client, _code(exc), addr)
        else:
            super().handle_error(req, client, addr, exc)


def _has_body(request: Any) -> bool:
    return any(name in {"CONTENT-LENGTH", "TRANSFER-ENCODING"} for name, _ in request.headers)


def _code(error: ParseException) -> str:
    if isinstance(error, LimitRequestLine):
        return "uri_too_long"
    return "headers_too_large" if isinstance(error, LimitRequestHeaders) else "bad_request"


def _refuse(client: socket.socket, name: str, address: tuple[str, int] | str) -> None:
    ip = address[0] if isinstance(address, tuple) else None  # a Unix socket
    status, headers, body = refusal(name, ip)
    lines = [f"HTTP/1.1 {status} Refused", *(f"{name}: {value}" for name, value in headers.items())]
    client.settimeout(SEND_SECONDS)
    try:
        client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    except OSError:
        logger.debug("refusal_not_sent")


class WholeResponse(Response):  # type: ignore[misc]
    """An answer whose headers go out together with the first bytes of its body.

    gunicorn itself sends one after the other. A process that is killed in between leaves a proxy with headers that it
    has passed on already, and the client with half an answer; of a GET that has no answer yet it asks the next server.
    """

    headers_sent: bool
    _head = b""

    def send_headers(self) -> None:
        """Make the headers ready to go."""
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self._head = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def sendfile(self, respiter: Any) -> bool:
        """Let the kernel send a file; the headers go first."""
        self._send_head()
        return bool(super().sendfile(respiter))

    def close(self) -> None:
        """End the answer; one without a body has headers only."""
        self._send_head()
        super().close()

    def _send_head(self, body: bytes = b"") -> None:
        self.send_headers()
        head, self._head = self._head, b""
        if head or body:
            self.sock.sendall(head + body)

    def _emit_body(self, data: bytes) -> None:
        self._send_head(b"%X\r\n%s\r\n" % (len(data), data) if self.chunked else data)
