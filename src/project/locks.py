"""Locks that only one process at a time holds; they end with whoever holds them, a crash included."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from project.database import db
from project.errors import CommandRefused


class AlreadyRunning(CommandRefused):
    """Somebody else is doing the same at this moment."""


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Run the block while nobody else with this database runs one of the same name.

    Raises:
        AlreadyRunning: somebody does; nobody waits.
    """
    lock = _postgresql if db.engine.dialect.name == "postgresql" else _sqlite
    with lock(name) as is_ours:
        if not is_ours:
            raise AlreadyRunning("Another process is doing this right now; wait until it has ended.")
        yield


@contextmanager
def _postgresql(name: str) -> Iterator[bool]:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    with db.engine.connect() as connection:
        # Out of the pool: the lock is the connection's, and ends when that is closed.
        connection.detach()
        is_ours = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}))
        yield is_ours
        if is_ours:
            # The server hears of the end of a connection a little later than whoever comes next.
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


@contextmanager
def _sqlite(name: str) -> Iterator[bool]:
    # Beside the database, which is on this machine; the system unlocks a file when it is closed.
    with Path(f"{db.engine.url.database}.{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
