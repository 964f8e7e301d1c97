"""Honest clients that forgive nothing: connections stay open, and no request is sent twice."""

import http.client
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from tests.http.client import PROBLEM

# Every so many requests of a client one makes a payment; the others read.
WRITE_EACH = 4
CLIENTS = 20


@dataclass
class StrictLoad:
    """Requests in the background, `rate` of them each second, and what became of each."""

    url: str
    token: str
    price: str
    rate: int = 100
    reads: Counter[str] = field(default_factory=Counter)
    # By the Idempotency-Key of a payment: the status, or what went wrong, and the id or code.
    writes: dict[str, tuple[str, str]] = field(default_factory=dict)
    slowest: float = 0  # seconds
    stopping: bool = False

    def __enter__(self) -> "StrictLoad":
        self._threads = [Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopping = True
        for thread in self._threads:
            thread.join()

    @property
    def written(self) -> Counter[str]:
        """How many payments ended how."""
        return Counter(status for status, _ in list(self.writes.values()))

    def _run(self, number: int) -> None:
        connection = self.connect()
        begin = time.monotonic() + number / self.rate
        for sent in count():
            time.sleep(max(0, begin + sent * CLIENTS / self.rate - time.monotonic()))
            if self.stopping:
                break
            asked = time.monotonic()
            if (sent + number) % WRITE_EACH:
                self.reads[self._ask(connection, "GET", "/v1/users/me", {}, None)[0]] += 1
            else:
                key = str(uuid4())
                self.writes[key] = self.pay(connection, key)
            self.slowest = max(self.slowest, time.monotonic() - asked)
        connection.close()

    def connect(self) -> http.client.HTTPConnection:
        """Make a client, which connects when it has something to send, and again when it was told of the end."""
        address = urlsplit(self.url)
        return http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)

    def pay(self, connection: http.client.HTTPConnection, key: str) -> tuple[str, str]:
        """Make a payment: the status, and its id or the code of a problem."""
        status, body = self._ask(
            connection,
            "POST",
            "/v1/payments",
            {"Content-Type": "application/json", "Idempotency-Key": key},
            json.dumps({"price_id": self.price}),
        )
        return status, str(body["data"]["id"] if "data" in body else body.get("code"))

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: str | None
    ) -> tuple[str, dict[str, Any]]:
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", **headers})
            response = connection.getresponse()
            found: dict[str, Any] = json.loads(response.read())
            # Whatever fails does so with a problem.
            assert response.status < 400 or response.headers["Content-Type"] == PROBLEM
            return str(response.status), found
        except (OSError, http.client.HTTPException, ValueError, AssertionError) as error:
            connection.close()
            return type(error).__name__, {}
