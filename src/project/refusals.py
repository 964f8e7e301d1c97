"""gunicorn's worker: what it refuses before the application hears of it, and how it shares connections with others."""

import logging
import select
import socket
import time
import uuid
from typing import Any

import orjson
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

from project.errors import PROBLEM_TYPE, REGISTRY
from project.headers import DEFAULTS, STRICT_TRANSPORT

logger = logging.getLogger(__name__)

SEND_SECONDS = 1
# Seconds that a process with so many connections waits before it takes another.
COURTESY, MAX_COURTESY = 0.0002, 0.002
# How long the thread of a connection waits for its next request before it gives the connection back.
FOLLOWING_MS = 10


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

    def handle(self, conn: Any) -> Any:
        """Answer a request, and those that follow on its connection before long.

        By itself each goes from the main thread to another one and the connection back again, which costs as much as
        a short query.
        """
        kept: Any = super().handle(conn)
        while kept is True and self._follows(conn):
            kept = super().handle(conn)
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


def _code(error: ParseException) -> str:
    if isinstance(error, LimitRequestLine):
        return "uri_too_long"
    return "headers_too_large" if isinstance(error, LimitRequestHeaders) else "bad_request"


def refusal(name: str, ip: str | None) -> tuple[int, dict[str, str], bytes]:
    """Log that a request was refused, and return the status, the headers and the body of the answer."""
    code, request_id = REGISTRY[name], str(uuid.uuid4())
    logger.info("request_refused", extra={"code": name, "status": code.status, "ip": ip, "request_id": request_id})
    about = {"type": f"/errors#{name}", "title": code.title, "status": code.status, "detail": code.title}
    body = orjson.dumps({**about, "code": name, "request_id": request_id})
    headers = {
        **DEFAULTS,
        # Browsers take no notice of it where it did not come over https.
        "Strict-Transport-Security": STRICT_TRANSPORT,
        "Cache-Control": "no-store",
        "Connection": "close",
        "Content-Length": str(len(body)),
        "Content-Type": PROBLEM_TYPE,
        "X-Request-ID": request_id,
    }
    return code.status, headers, body


def _refuse(client: socket.socket, name: str, address: tuple[str, int] | str) -> None:
    ip = address[0] if isinstance(address, tuple) else None  # a Unix socket
    status, headers, body = refusal(name, ip)
    lines = [f"HTTP/1.1 {status} Refused", *(f"{name}: {value}" for name, value in headers.items())]
    client.settimeout(SEND_SECONDS)
    try:
        client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    except OSError:
        logger.debug("refusal_not_sent")
