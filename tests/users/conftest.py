from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, select

from project.audit import AuditEvent
from project.database import db
from project.errors import AppError
from project.users import service
from project.users.models import User
from tests.factories import make_user


@pytest.fixture
def statements(app: Flask) -> Iterator[list[str]]:
    """Every statement that the database gets from here on."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def stored(in_app: Callable[..., Any]) -> Callable[[User], User]:
    """Return an account as the database has it now, erased ones too."""
    return lambda user: in_app(lambda: db.session.get(User, user.id))


@pytest.fixture
def audited(in_app: Callable[..., Any]) -> Callable[[], list[AuditEvent]]:
    """Return the events in the audit log, the oldest first."""
    return lambda: in_app(lambda: db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all())


@pytest.fixture
def erased(in_app: Callable[..., Any]) -> User:
    """An account that was erased."""

    def make() -> User:
        user = make_user()
        service.erase_user(user.id, actor_id=None)
        return user

    user: User = in_app(make)
    return user


@pytest.fixture
def at_once(app: Flask) -> Callable[..., list[Any]]:
    """Call functions in threads that start together; return what each returned, or the error it was refused with."""

    def call(*functions: Callable[[], Any]) -> list[Any]:
        start = Barrier(len(functions))

        def run(function: Callable[[], Any]) -> Any:
            with app.app_context():
                start.wait()
                try:
                    return function()
                except AppError as error:
                    return error

        with ThreadPoolExecutor(len(functions)) as threads:
            return list(threads.map(run, functions))

    return call
