"""The database: transactions, reads outside them, times, settings of connections, and what an outage looks like."""

import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from threading import Barrier
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import bindparam, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError, StatementError

from project import create_app
from project.database import db, give_back, on_commit, run, transaction, utcnow, uuid7
from project.users.models import User
from tests.conftest import ENV
from tests.factories import make_user
from tests.servers.process import free_port

on_sqlite_only = pytest.mark.parametrize("app", ["sqlite"], indirect=True)
on_postgresql_only = pytest.mark.parametrize("app", ["postgresql"], indirect=True)


def new_user(email: str) -> User:
    return User(email=email)


def committed() -> list[str]:
    """The addresses that another connection sees."""
    with db.engine.connect() as connection:
        return list(connection.scalars(select(User.email).order_by(User.email)))


class DeliberateError(Exception):
    """What goes wrong in a test."""


# --- transactions -----------------------------------------------------------------------------------------------------


def test_a_transaction_is_seen_by_others_when_it_ends_and_not_before(session):
    with transaction():
        session.add(new_user("a@x.com"))
        session.flush()
        assert committed() == []

    assert committed() == ["a@x.com"]


@pytest.mark.parametrize("error", [DeliberateError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_error_undoes_everything(session, error):
    @transaction()
    def fail() -> None:
        session.add(new_user("a@x.com"))
        session.flush()
        session.execute(insert(User).values(email="b@x.com"))
        raise error

    with pytest.raises(error):
        fail()
    assert committed() == []
    with transaction():
        session.add(new_user("c@x.com"))
    assert committed() == ["c@x.com"]


def test_a_constraint_that_breaks_at_the_commit_undoes_everything(session):
    make_user(email="a@x.com")
    with pytest.raises(IntegrityError), transaction():
        session.add_all([new_user("b@x.com"), new_user("a@x.com")])

    assert committed() == ["a@x.com"]


def test_a_nested_block_joins_the_outermost(session):
    with transaction():
        with transaction(), transaction():
            session.add(new_user("a@x.com"))
        assert committed() == []
        session.add(new_user("b@x.com"))

    assert committed() == ["a@x.com", "b@x.com"]


def test_an_error_after_a_nested_block_undoes_the_nested_block_too(session):
    @transaction()
    def fail() -> None:
        with transaction():
            session.add(new_user("a@x.com"))
        raise DeliberateError

    with pytest.raises(DeliberateError):
        fail()
    assert committed() == []


def test_work_is_never_half_kept_by_catching_the_error_of_a_nested_block(session):
    @transaction()
    def go_on_after_an_error() -> None:
        session.add(new_user("a@x.com"))
        with suppress(DeliberateError), transaction():
            raise DeliberateError

    with pytest.raises(RuntimeError, match="nested"):
        go_on_after_an_error()
    assert committed() == []
    with transaction():
        session.add(new_user("b@x.com"))
    assert committed() == ["b@x.com"]


def test_a_flush_that_failed_cannot_be_committed(session):
    make_user(email="a@x.com")

    @transaction()
    def go_on_after_an_error() -> None:
        session.add(new_user("a@x.com"))
        with suppress(IntegrityError):
            session.flush()

    with pytest.raises(PendingRollbackError):
        go_on_after_an_error()
    assert committed() == ["a@x.com"]


def test_changes_made_before_a_transaction_are_refused(session):
    user = make_user(email="a@x.com")
    user.name = "stray"
    with pytest.raises(RuntimeError, match="outside"), transaction():
        pass


def test_objects_stay_readable_after_the_commit_without_a_query(session):
    user = make_user(email="a@x.com")
    with statements() as seen:
        assert (user.email, user.role) == ("a@x.com", "user")

    assert seen == []


def test_each_thread_has_a_transaction_of_its_own(app):
    with app.app_context(), transaction(), ThreadPoolExecutor(1) as pool:
        other = pool.submit(in_context, app, lambda: on_commit(print))

    assert isinstance(other.exception(), RuntimeError)


def in_context(app, call: Callable[[], Any]) -> Any:
    """Call a function in an application context of this thread."""
    with app.app_context():
        return call()


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_run_in_order_once_the_work_can_be_seen(session):
    seen: list[Any] = []
    with transaction():
        session.add(new_user("a@x.com"))
        on_commit(lambda: seen.append(("first", committed())))
        with transaction():
            on_commit(lambda: seen.append("second"))
        assert seen == []

    assert seen == [("first", ["a@x.com"]), "second"]


def test_callbacks_of_what_was_undone_never_run(session):
    seen: list[str] = []

    @transaction()
    def fail() -> None:
        on_commit(lambda: seen.append("undone"))
        raise DeliberateError

    with pytest.raises(DeliberateError):
        fail()
    with transaction():
        on_commit(lambda: seen.append("done"))

    assert seen == ["done"]


def test_a_callback_may_begin_a_transaction_and_its_failure_undoes_nothing(session):
    def fail() -> None:
        with transaction():
            session.add(new_user("b@x.com"))
        raise DeliberateError

    @transaction()
    def work() -> None:
        session.add(new_user("a@x.com"))
        on_commit(fail)

    with pytest.raises(DeliberateError):
        work()
    assert committed() == ["a@x.com", "b@x.com"]


def test_a_callback_needs_a_transaction(session):
    with pytest.raises(RuntimeError, match="on_commit"):
        on_commit(lambda: None)


# --- outside transactions ---------------------------------------------------------------------------------------------


class statements:  # noqa: N801 - reads as a function: with statements() as seen
    """Collect the SQL that is sent to the database within the block."""

    def __enter__(self) -> list[str]:
        self.seen: list[str] = []
        event.listen(db.engine, "before_cursor_execute", self._note)
        return self.seen

    def __exit__(self, *_: object) -> None:
        event.remove(db.engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.seen.append(statement)


@on_postgresql_only
def test_a_read_is_one_statement_without_begin_commit_or_rollback(app):
    def read() -> None:
        with app.app_context():
            db.session.scalars(select(User)).all()
            db.session.scalar(select(func.count(User.id)))
        with app.app_context():
            run(select(User.id))

    read()
    with app.app_context():
        connection = db.session.connection().connection.dbapi_connection
        assert connection is not None
        protocol = connection.pgconn
    with tempfile.TemporaryFile() as trace:
        protocol.trace(trace.fileno())
        read()
        protocol.untrace()
        os.fsync(trace.fileno())
        trace.seek(0)
        sent = re.findall(r'\tF\t\d+\t(?:Parse|Query)\t[^\n]*"([^"\n]*)', trace.read().decode())

    assert len(sent) == 3, sent
    assert all(statement.startswith("SELECT") for statement in sent)


def test_a_statement_of_rows_needs_no_session_and_what_it_writes_is_committed(app):
    with app.app_context():
        [made] = run(insert(User).values(email=bindparam("address")).returning(User.id), {"address": "a@x.com"})
        assert run(select(User.id)) == [made]
        assert not db.session.registry.has()
        assert committed() == ["a@x.com"]


def test_a_statement_of_rows_joins_the_transaction_that_is_open(session):
    with suppress(DeliberateError), transaction():
        run(insert(User).values(email="a@x.com").returning(User.id))
        assert len(run(select(User.id))) == 1
        assert committed() == []
        raise DeliberateError
    assert committed() == []


def test_nothing_stays_open_after_a_read(session):
    session.scalars(select(User)).all()

    assert not is_in_transaction()
    with transaction():
        session.scalar(select(1))
        assert is_in_transaction()
    session.scalars(select(User)).all()
    assert not is_in_transaction()


def is_in_transaction() -> bool:
    """Ask the driver whether the session's connection has a transaction open."""
    connection: Any = db.session.connection().connection.dbapi_connection
    if db.engine.dialect.name == "sqlite":
        return bool(connection.in_transaction)
    return bool(connection.info.transaction_status is not TransactionStatus.IDLE)


def test_a_session_sees_what_others_commit_between_its_reads(session, app):
    count = select(func.count(User.id))
    assert session.scalar(count) == 0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_context, app, lambda: make_user().id).result()

    assert session.scalar(count) == 1


# --- writers ----------------------------------------------------------------------------------------------------------


@on_sqlite_only
def test_writers_that_read_first_wait_for_each_other_on_sqlite(app):
    """Without BEGIN IMMEDIATE, both would read, and one could not write any more ("database is locked")."""
    with app.app_context():
        user_id = make_user().id
    start = Barrier(4)

    def add_five() -> None:
        start.wait()
        for _ in range(5):
            with transaction():
                version = db.session.scalar(select(User.version).where(User.id == user_id)) or 0
                db.session.execute(update(User).where(User.id == user_id).values(version=version + 1))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(in_context, app, add_five) for _ in range(4)]:
            done.result()

    with app.app_context():
        assert db.session.scalar(select(User.version).where(User.id == user_id)) == 21


@on_sqlite_only
def test_readers_do_not_wait_for_a_writer_on_sqlite(session, app):
    with transaction():
        session.add(new_user("a@x.com"))
        session.flush()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(in_context, app, committed).result(2) == []


@on_sqlite_only
def test_writers_that_wait_leave_the_connections_to_the_readers_on_sqlite(session, app):
    connections = session.get_bind().pool.size()
    started = Barrier(connections + 1)

    def add(number: int) -> None:
        started.wait()
        with transaction():
            db.session.add(new_user(f"{number}@x.com"))

    with ThreadPoolExecutor(connections + 1) as pool:
        with transaction():
            session.add(new_user("a@x.com"))
            writers = [pool.submit(in_context, app, partial(add, number)) for number in range(connections)]
            started.wait()
            for _ in range(20):
                assert pool.submit(in_context, app, committed).result(2) == []
        for writer in writers:
            writer.result()


# --- connections ------------------------------------------------------------------------------------------------------


@on_sqlite_only
@pytest.mark.parametrize(
    ("pragma", "value"), [("foreign_keys", 1), ("journal_mode", "wal"), ("synchronous", 2), ("busy_timeout", 5000)]
)
def test_connections_to_sqlite_are_safe(session, pragma, value):
    assert session.scalar(text(f"PRAGMA {pragma}")) == value


@on_postgresql_only
@pytest.mark.parametrize(
    ("setting", "value"),
    [("TimeZone", "UTC"), ("statement_timeout", "10s"), ("transaction_isolation", "read committed")],
)
def test_connections_to_postgresql_are_bounded_and_in_utc(session, setting, value):
    assert session.scalar(text(f"SHOW {setting}")) == value
    with transaction():
        assert session.scalar(text(f"SHOW {setting}")) == value


def test_errors_do_not_show_the_parameters(session):
    make_user(email="a@x.com")
    with pytest.raises(IntegrityError) as caught, transaction():
        session.execute(insert(User).values(id=uuid7(), email="a@x.com", name="sesame"))

    assert "sesame" not in str(caught.value)
    assert "parameters hidden" in str(caught.value)


# --- times and ids ----------------------------------------------------------------------------------------------------


def test_times_come_back_aware_and_in_utc(session):
    east = datetime(2030, 1, 31, 14, 30, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))
    user = make_user(last_login_at=east)

    [(found,)] = session.execute(select(User.last_login_at).where(User.id == user.id)).all()

    assert found == east
    assert found.tzinfo is UTC
    assert session.scalar(select(User.id).where(User.last_login_at == east)) == user.id
    assert session.scalar(select(User.id).where(User.last_login_at > east)) is None


def test_a_naive_time_is_refused(session):
    with pytest.raises(StatementError, match="without a zone"):
        session.execute(select(User).where(User.created_at > datetime(2030, 1, 31)))  # noqa: DTZ001


def test_a_record_gets_an_id_and_its_times(session):
    before = utcnow()
    user = make_user()

    assert user.id.version == 7
    assert before <= user.created_at <= utcnow()
    with transaction():
        user.name = "Ann"
    assert user.updated_at > user.created_at


def test_ids_are_made_in_order():
    ids = [uuid7() for _ in range(1000)]

    assert ids == sorted(set(ids))


# --- outages ----------------------------------------------------------------------------------------------------------


def test_a_database_that_is_down_is_a_503_problem(tmp_path):
    env = {**ENV, "DATA_DIR": str(tmp_path), "DATABASE_URL": f"postgresql://app:sesame@127.0.0.1:{free_port()}/app"}
    credentials = {"email": "a@x.com", "password": "correct horse battery staple"}

    response = create_app(env).test_client().post("/v1/auth/login", json=credentials)

    assert (response.status_code, response.content_type) == (503, "application/problem+json")
    assert response.get_json()["code"] == "service_unavailable"
    assert response.headers["Retry-After"] == "2"
    assert not re.search("sesame|Traceback|psycopg|sqlalchemy|connection|127.0.0.1", response.text)


@on_postgresql_only
def test_connections_that_the_server_has_cut_are_made_anew(app, client, as_user, postgres_url):
    caller = as_user()
    assert client.get("/v1/users/me", headers=caller).status_code == 200
    with app.app_context():
        name = db.engine.url.database
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as server:
        # Waits until they have ended, at most so many milliseconds.
        cut = "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = %s"
        ended = server.execute(cut, [name])
        assert {row[0] for row in ended} == {True}

    assert client.get("/v1/users/me", headers=caller).status_code == 200


@on_postgresql_only
@pytest.mark.parametrize("between", [give_back, lambda: None], ids=["after waiting", "at once"])
def test_who_has_lost_the_connection_while_reading_can_still_write(session, between):
    with pytest.raises(OperationalError):
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    between()
    with transaction():
        session.add(new_user("a@x.com"))

    assert committed() == ["a@x.com"]
