"""Alembic's environment: how `flask db …` reaches the database and what it compares with the models."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from alembic import context
from flask import current_app
from sqlalchemy import Connection, Engine

from project.database import Base, UtcDateTime

# Any constant will do; every process that migrates must use the same one.
ADVISORY_LOCK = 7_305_183_260_018
# A statement that waits for a table's lock makes all others wait behind it, so it gives up early.
LOCK_TIMEOUT = "2s"
# A migration that needs longer (an index built concurrently, a backfill) says so itself with SET LOCAL.
STATEMENT_TIMEOUT = "60s"
# How often a process asks whether another one that migrates has come to its end.
ASK_AGAIN_SECONDS = 0.2
# How long a second process waits for the one that is migrating an SQLite file.
BUSY_TIMEOUT_MS = 60_000


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Leave the tables of jobs out of the comparison: no model describes them."""
    return not (kind == "table" and name is not None and name.startswith(("procrastinate_", "local_jobs")))


def include_object(item: Any, _name: str | None, kind: str, reflected: bool, _compared_with: object) -> bool:
    """Leave indexes out of the comparison that are for the other database only."""
    condition = getattr(item, "_ddl_if", None)
    dialect = context.get_context().dialect.name
    return reflected or kind != "index" or condition is None or condition.dialect == dialect


def render_item(kind: str, item: object, _autogen_context: object) -> str | Literal[False]:
    """Write our own column type as what it is in the database, so that migrations import nothing of ours."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def configure(**options: Any) -> None:
    """Tell Alembic about the models."""
    context.configure(
        target_metadata=Base.metadata,
        include_name=include_name,
        include_object=include_object,
        render_item=render_item,
        compare_type=True,
        render_as_batch=True,
        transaction_per_migration=True,
        **options,
    )


@contextmanager
def locked(engine: Engine) -> Iterator[Connection]:
    """Give a connection that only one process at a time gets.

    It is closed for good at the end, and with it go its settings and its lock.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            yield from locked_sqlite(connection)
        else:
            yield from locked_postgresql(connection)


def locked_sqlite(connection: Connection) -> Iterator[Connection]:
    """Hold one transaction with the write lock over all migrations: the only lock that SQLite has."""
    connection.detach()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    # Batch mode makes a new table and drops the old one, which would delete what refers to it.
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.rollback()
    with connection.execution_options(write=True).begin():
        yield connection
        if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
            raise RuntimeError("the migrations left rows that refer to nothing")


def locked_postgresql(connection: Connection) -> Iterator[Connection]:
    """Hold an advisory lock over all migrations, each of which has a transaction of its own."""
    # The engine's default is AUTOCOMMIT. Not detached: a migration may leave its transaction for a while.
    connection = connection.execution_options(isolation_level="READ COMMITTED")
    try:
        # Asked again and again: a statement that waits sees the database as it was when it began, and whoever builds an
        # index concurrently waits for the end of all those.
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({ADVISORY_LOCK})").scalar():
            connection.rollback()
            time.sleep(ASK_AGAIN_SECONDS)
        connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        connection.exec_driver_sql(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
        connection.commit()
        yield connection
    finally:
        connection.invalidate()


def run() -> None:
    """Run what the command asked for: on the database, or with --sql as text."""
    engine = current_app.extensions["migrate"].db.engine
    if context.is_offline_mode():
        configure(url=engine.url, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    with locked(engine) as connection:
        configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()


run()
