"""Clients that go on asking while something is broken, and what they were told."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, Self
from uuid import uuid4

import requests

from tests.http.client import Account, new_address

# Longer than any answer may take, so that one that does is seen as what it is.
CLIENT_TIMEOUT_SECONDS = 30
BAD_REQUEST = 400
FILE_BYTES = 10_000
CONTENT = {"Content-Type": "application/octet-stream", "X-Filename": "noise.bin"}
# How many clients of each kind there are.
CLIENTS = {"health": 1, "read": 4, "pay": 2, "upload": 2, "register": 1}


@dataclass(frozen=True)
class Answer:
    """What a request was answered, and when: seconds of the monotonic clock."""

    kind: str
    begun: float
    ended: float
    outcome: int | str  # a status, or the name of what went wrong without one
    code: str = ""  # of a problem

    @property
    def good(self) -> bool:
        """Whether it did what was asked for."""
        return isinstance(self.outcome, int) and self.outcome < BAD_REQUEST


@dataclass(frozen=True)
class Written:
    """What a client was told has been kept."""

    kind: str
    id: str
    digest: str = ""


@dataclass
class Load:
    """Clients of every kind, each sending one request after the other."""

    url: str
    account: Account
    price_id: str
    pause: float  # seconds between two requests of a client
    kinds: Iterable[str] = tuple(CLIENTS)
    answers: list[Answer] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    _stopping: Event = field(default_factory=Event)

    def __enter__(self) -> Self:
        ask = {
            "health": self._health,
            "read": self._read,
            "pay": self._pay,
            "upload": self._upload,
            "register": self._register,
        }
        self._threads = [
            Thread(target=self._run, args=(kind, ask[kind])) for kind in self.kinds for _ in range(CLIENTS[kind])
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def run_for(self, seconds: float) -> None:
        """Let it go on for a while."""
        self._stopping.wait(seconds)

    def _run(self, kind: str, ask: Callable[[requests.Session], requests.Response]) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {self.account.access_token}"
            while not self._stopping.is_set():
                begun, code = time.monotonic(), ""
                outcome: int | str
                try:
                    answer = ask(session)
                    outcome = answer.status_code
                    if answer.headers.get("Content-Type") == "application/problem+json":
                        code = answer.json()["code"]
                except requests.RequestException as error:
                    outcome = type(error).__name__
                self.answers.append(Answer(kind, begun, time.monotonic(), outcome, code))
                self._stopping.wait(self.pause)

    def _health(self, session: requests.Session) -> requests.Response:
        return session.get(f"{self.url}/healthz", timeout=CLIENT_TIMEOUT_SECONDS)

    def _read(self, session: requests.Session) -> requests.Response:
        return session.get(f"{self.url}/v1/users/me", timeout=CLIENT_TIMEOUT_SECONDS)

    def _pay(self, session: requests.Session) -> requests.Response:
        headers = {"Idempotency-Key": str(uuid4())}
        answer = session.post(
            f"{self.url}/v1/payments",
            json={"price_id": self.price_id},
            headers=headers,
            timeout=CLIENT_TIMEOUT_SECONDS,
        )
        self._note("payment", answer)
        return answer

    def _upload(self, session: requests.Session) -> requests.Response:
        content = os.urandom(FILE_BYTES)
        headers = {**CONTENT, "Idempotency-Key": str(uuid4())}
        answer = session.post(f"{self.url}/v1/files/raw", data=content, headers=headers, timeout=CLIENT_TIMEOUT_SECONDS)
        self._note("file", answer, hashlib.sha256(content).hexdigest())
        return answer

    def _register(self, session: requests.Session) -> requests.Response:
        address = new_address()
        body = {"email": address, "password": f"correct horse {uuid4()}"}
        answer = session.post(f"{self.url}/v1/auth/register", json=body, timeout=CLIENT_TIMEOUT_SECONDS)
        if answer.ok:
            self.written.append(Written("mail", address))
        return answer

    def _note(self, kind: str, answer: requests.Response, digest: str = "") -> None:
        if answer.ok:
            self.written.append(Written(kind, answer.json()["data"]["id"], digest))


def lost(url: str, account: Account, written: Iterable[Written]) -> list[Written]:
    """Return which payments and files clients were told have been kept and are not there, or are not what they sent."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {account.access_token}"
        return [one for one in written if one.kind != "mail" and not _kept(url, session, one)]


def _kept(url: str, session: requests.Session, one: Written) -> bool:
    if one.kind == "payment":
        return session.get(f"{url}/v1/payments/{one.id}", timeout=CLIENT_TIMEOUT_SECONDS).ok
    answer = session.get(f"{url}/v1/files/{one.id}/content", timeout=CLIENT_TIMEOUT_SECONDS)
    return answer.ok and hashlib.sha256(answer.content).hexdigest() == one.digest
