"""How gunicorn puts an answer on the wire."""

from typing import Any

from gunicorn.http.wsgi import Response


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
