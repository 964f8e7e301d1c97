from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Event
from typing import Any, Literal

import pytest
from argon2 import PasswordHasher
from flask import Flask

from project.auth import passwords
from project.database import db
from project.mail import Message
from tests import factories

# How many may hash or wait for it at once.
ADMITTED = 10


class CountingHasher(PasswordHasher):
    """Argon2 that counts its runs, and does something else between a verification and its result."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.hashed = 0
        self.verified = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self.hashed += 1
        return super().hash(password, salt=salt)

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 - the library's name
        self.verified += 1
        try:
            return super().verify(hash, password)
        finally:
            self.meanwhile()


class HeldHasher(CountingHasher):
    """Argon2 that costs next to nothing, and waits for the test before each verification."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.go_on = Event()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 - the library's name
        assert self.go_on.wait(30)
        return super().verify(hash, password)


@pytest.fixture
def hasher(monkeypatch: pytest.MonkeyPatch) -> CountingHasher:
    """Passwords that are quickly hashed and verified, those of factories.make_user too; their runs are counted."""
    hasher = CountingHasher(time_cost=1, memory_cost=8, parallelism=1)
    made = hasher.hash(factories.PASSWORD)
    hasher.hashed = 0
    monkeypatch.setattr(factories, "password_hash", lambda: made)
    monkeypatch.setattr(passwords, "_DUMMY_HASH", made)
    monkeypatch.setattr(passwords, "_hasher", hasher)
    # What is done meanwhile may hash as well.
    monkeypatch.setattr(passwords, "_hashes", ThreadPoolExecutor(2))
    return hasher


@pytest.fixture
def held_hasher(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldHasher]:
    """A hasher that holds every verification until the test lets them go on."""
    hasher = HeldHasher()
    monkeypatch.setattr(passwords, "_hasher", hasher)
    yield hasher
    hasher.go_on.set()


@pytest.fixture
def mailed_token(run_jobs: Callable[[], int], outbox: list[Message]) -> Callable[[str], str]:
    """Run the jobs that are due and return the token in the newest mail of a template."""

    def find(template: str) -> str:
        run_jobs()
        links = [message.context["link"] for message in outbox if message.template == template]
        return links[-1].partition("#token=")[2]

    return find


@pytest.fixture
def sent(run_jobs: Callable[[], int], outbox: list[Message]) -> Callable[[], list[tuple[str, str]]]:
    """Run the jobs that are due and return all that was mailed, as template and address."""

    def mails() -> list[tuple[str, str]]:
        run_jobs()
        return [(message.template, message.to) for message in outbox]

    return mails


@pytest.fixture
def audited(app: Flask) -> Callable[[], list[str]]:
    """Return the actions in the audit log, the oldest first."""

    def actions() -> list[str]:
        with app.app_context():
            return list(db.session.execute(db.text("SELECT action FROM audit_events ORDER BY at, id")).scalars())

    return actions


@pytest.fixture
def calling_from(app: Flask) -> Callable[..., AbstractContextManager[None]]:
    """Be inside a request from an address, for services that ask where one came from."""

    @contextmanager
    def request_from(ip: str, *, user_agent: str = "") -> Iterator[None]:
        with app.test_request_context(environ_base={"REMOTE_ADDR": ip}, headers={"User-Agent": user_agent}):
            app.preprocess_request()
            yield

    return request_from
