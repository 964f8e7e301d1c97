"""Many clients at once, each with a connection of its own that it keeps, as apps and their servers do."""

import http.client
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from tests.files.server.site import SECONDS

CONNECTIONS = 64
# The first request with the key is still running; the server has more to do than it can.
IN_PROGRESS, BUSY = "idempotency_in_progress", "service_unavailable"
# What a client gets whose server was killed.
LOST = (OSError, http.client.HTTPException)

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """An answer of the API."""

    status: int
    body: dict[str, Any]
    replayed: bool
    refused: int = 0  # how often the server was too busy before

    @property
    def data(self) -> dict[str, Any]:
        """The data of a success."""
        data: dict[str, Any] = self.body["data"]
        return data

    @property
    def said(self) -> str:
        """The status of a success, the code of a problem; of what is invalid, the code of the field."""
        if "errors" in self.body:
            return str(self.body["errors"][0]["code"])
        return str(self.body.get("code", self.status))


class Client:
    """A caller with a connection to a server."""

    def __init__(self, port: int, caller: Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        self._caller = caller

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str) -> Answer:
        """GET."""
        return self._send("GET", path, None, {})

    def post(self, path: str, body: object, *, key: str | None = None) -> Answer:
        """POST an object, or the text of a body as it is, with an Idempotency-Key."""
        sent = body if isinstance(body, str) else json.dumps(body)
        return self._send("POST", path, sent, {} if key is None else {"Idempotency-Key": key})

    def post_until_answered(self, path: str, body: object, *, key: str) -> Answer:
        """POST, and again while we are told to come again."""
        deadline = time.monotonic() + SECONDS
        refused = 0
        while (answer := self.post(path, body, key=key)).said in {IN_PROGRESS, BUSY}:
            assert time.monotonic() < deadline, answer.body
            refused += answer.said == BUSY
            time.sleep(0.2)
        return replace(answer, refused=refused)

    def _send(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        if body is not None:
            headers = {"Content-Type": "application/json", **headers}
        self._connection.request(method, path, body, {**self._caller, **headers})
        response = self._connection.getresponse()
        told = json.loads(response.read())
        return Answer(response.status, told, response.headers.get("Idempotent-Replayed") == "true")


def at_once(
    port: int, caller: Mapping[str, str], works: Iterable[Work], do: Callable[[Client, Work], Result]
) -> list[Result]:
    """Let as many clients as there are connections share the work, and return what came of it."""
    waiting: SimpleQueue[Work] = SimpleQueue()
    for work in works:
        waiting.put(work)

    def run(_number: int) -> list[Result]:
        results = []
        with closing(Client(port, caller)) as client:
            while True:
                try:
                    results.append(do(client, waiting.get_nowait()))
                except Empty:
                    return results

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        return [result for results in threads.map(run, range(CONNECTIONS)) for result in results]
