"""Counts what is sent to a database."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, event


@dataclass
class Sent:
    """The statements that were sent, with their values, and how many transactions were written around some of them.

    BEGIN and COMMIT, or ROLLBACK, are not among the statements: a transaction takes two more trips.
    """

    statements: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    transactions: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """How many statements, and in how many transactions some of them were; the others are each by itself."""
        return len(self.statements), self.transactions


@contextmanager
def watched(engine: Engine) -> Iterator[Sent]:
    """Watch what is sent to a PostgreSQL meanwhile."""
    sent = Sent()

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.statements.append((statement, dict(parameters or {})))

    def note_end(connection: Connection) -> None:
        # SQLAlchemy has a transaction around everything; where the driver commits by itself it is only a word.
        driver: Any = connection.connection.dbapi_connection
        sent.transactions += not driver.autocommit

    events: dict[str, Any] = {"before_cursor_execute": note, "commit": note_end, "rollback": note_end}
    for name, listener in events.items():
        event.listen(engine, name, listener)
    try:
        yield sent
    finally:
        for name, listener in events.items():
            event.remove(engine, name, listener)
