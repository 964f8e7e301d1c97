"""The database: base classes of the models, engine settings, and the only place that commits."""

import enum
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import DateTime, Dialect, Engine, Enum, Executable, MetaData, Row, TypeDecorator, Uuid, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry
from typing_extensions import override
from uuid_utils.compat import uuid7 as _uuid7

from project.postgresql import connection_options, watch

BUSY_TIMEOUT_SECONDS = 5
# Those before us may be waiting for the one that writes: on SQLite all of them, on PostgreSQL those who want its row.
POOL_TIMEOUT_SECONDS = 5

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def utcnow() -> datetime:
    """Return the present time, aware and in UTC."""
    return datetime.now(UTC)


def uuid7() -> uuid.UUID:
    """Return a new time-ordered id (RFC 9562 §5.7), as a standard UUID."""
    return _uuid7()


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time. SQLite keeps no zone, so it is taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store in UTC; a naive time is a bug and is refused."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Leave to the driver what it can do: it gives times in the zone of the connection, which is UTC."""
        return None if dialect.name == "postgresql" else super().result_processor(dialect, coltype)


COLUMN_TYPES: dict[Any, Any] = {
    datetime: UtcDateTime(),
    uuid.UUID: Uuid(),
    enum.Enum: Enum(
        enum.Enum,
        native_enum=False,
        create_constraint=True,
        length=32,
        values_callable=lambda kind: [member.value for member in kind],
    ),
}


class Base(DeclarativeBase):
    """Base of all models: named constraints, aware times, enumerations stored by value."""

    registry = registry(metadata=MetaData(naming_convention=NAMING_CONVENTION), type_annotation_map=COLUMN_TYPES)


class Record(Base):
    """A row with an id and the times of its making and last change."""

    __abstract__ = True

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


_writer = Lock()

# Objects stay readable after a commit: services return them and routes dump them without a second query.
db = SQLAlchemy(model_class=Base, disable_autonaming=True, session_options={"expire_on_commit": False})


def engine_options(url: str, *, pool_size: int) -> dict[str, Any]:
    """Return the options of the engine for a database URL.

    Statements outside `transaction()` run in AUTOCOMMIT: a read then costs one round trip instead of three.
    Parameters are kept out of error texts, and so out of the logs.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return {
            "hide_parameters": True,
            "pool_size": pool_size,
            "max_overflow": 0,
            "pool_timeout": POOL_TIMEOUT_SECONDS,
            "connect_args": {"timeout": BUSY_TIMEOUT_SECONDS},
        }
    return {
        "hide_parameters": True,
        "isolation_level": "AUTOCOMMIT",
        "skip_autocommit_rollback": True,
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": POOL_TIMEOUT_SECONDS,
        "pool_use_lifo": True,
        "connect_args": connection_options(),
    }


def init_app(app: Flask) -> None:
    """Attach the database to an application."""
    db.init_app(app)
    with app.app_context():
        prepare = _prepare_sqlite if db.engine.dialect.name == "sqlite" else watch
        prepare(db.engine)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # None puts the driver into autocommit: it then begins nothing behind our back.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        # Else INSERT OR REPLACE would delete a row without the triggers that forbid it.
        connection.execute("PRAGMA recursive_triggers=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A write lock from the start: upgrading a read lock later fails at once when another writer is ahead.
        if connection.get_execution_options().get("write"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def transaction() -> Iterator[None]:
    """Run the block in one transaction; a nested block joins the outermost, which commits.

    Any error undoes everything. Never leave one open across a provider call, a body read or a mail. Changes to
    objects belong inside: outside, the session is in AUTOCOMMIT and only reads.

    Raises:
        RuntimeError: objects were changed before the block, which would have written them by themselves; or the
            error of a nested block was caught, and half of the work would have been kept.
    """
    session = db.session()
    if not session.info.get("transaction"):
        yield from _outermost(session)
        return
    try:
        yield
    except BaseException:
        session.info["failed"] = True
        raise


def _outermost(session: Session) -> Iterator[None]:
    if session.new or session.dirty or session.deleted:
        raise RuntimeError("objects were changed outside transaction()")
    _end_reads(session)  # else the connection's mode could not change
    callbacks: list[Callable[[], None]] = []
    with _turn():
        session.info.update(transaction=True, failed=False, on_commit=callbacks)
        try:
            _begin_write()
            yield
            _commit(session)
        except BaseException:
            session.rollback()
            raise
        finally:
            session.info["transaction"] = False
    for callback in callbacks:
        callback()


@contextmanager
def _turn() -> Iterator[None]:
    """Let one thread after the other write to SQLite.

    It would let them wait by itself, but so that each only looks now and then whether it may write: of many, the
    unlucky would wait until they are refused. Other processes still wait in that way.
    """
    ours = db.engine.dialect.name == "sqlite" and _writer.acquire(timeout=BUSY_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        if ours:
            _writer.release()


def _end_reads(session: Session) -> None:
    """End the phase of autocommitted reads."""
    try:
        session.commit()
    except PendingRollbackError:
        session.rollback()  # the connection was lost meanwhile, and whoever caught that goes on with another one


def _commit(session: Session) -> None:
    if session.info["failed"]:
        raise RuntimeError("the error of a nested transaction() was caught")
    session.commit()


def _begin_write() -> None:
    options: dict[str, Any] = {"write": True}
    if db.engine.dialect.name == "postgresql":
        options["isolation_level"] = "READ COMMITTED"
    db.session.connection(execution_options=options)


def run(statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
    """Run one statement of rows, not of objects, and return all of them.

    A session costs as much as a short query, so without one that is open already there is none. What the statement
    writes is then a transaction of its own, which takes one trip to the server instead of three.
    """
    if db.session.registry.has():
        return db.session.execute(statement, values).all()
    with _turn() if statement.is_dml else nullcontext(), db.engine.connect() as connection:
        return connection.execute(statement, values).all()


def insert(model: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that knows ON CONFLICT; SQLAlchemy has one for each database."""
    return (postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert)(model)


def give_back() -> None:
    """Give the connection back to the pool before waiting for a client, a disk or a provider.

    Raises:
        RuntimeError: inside `transaction()`, which must not be open then.
    """
    session = db.session()
    if session.info.get("transaction"):
        raise RuntimeError("a transaction is open")
    _end_reads(session)


def on_commit(callback: Callable[[], None]) -> None:
    """Call `callback` right after the current transaction has committed; never if it does not.

    Raises:
        RuntimeError: outside `transaction()`.
    """
    session = db.session()
    if not session.info.get("transaction"):
        raise RuntimeError("on_commit() belongs inside transaction()")
    session.info["on_commit"].append(callback)
