"""Fixtures that every test may use: the application on both databases, its client, callers, mail and jobs."""

import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from project import create_app, jobs
from project.auth import tokens
from project.auth.service import SignIn
from project.database import db
from project.extensions import limiter
from project.mail import Message
from project.security import Role
from project.users.models import User
from tests import factories
from tests.servers import create_database, ensure_template

pytest_plugins = ["tests.plugins"]

ENV = {
    "APP_ENV": "testing",
    "SECRET_KEY": "a secret key of the tests that is long enough",
    "JWT_SECRET_KEYS": "test:a signing key of the tests that is long enough",
    "MAIL_URL": "memory://outbox",
    "PUBLIC_URL": "http://localhost",
}
# None of these asks which database it is on.
FEATURES = tuple(Path(__file__).parent / name for name in ("auth", "files", "payments", "users"))
SLOW = ("slow", "server", "browser")
# Each commit to SQLite waits for the disk, which takes longer than most tests do otherwise.
MEMORY = Path("/dev/shm")
ROOM = 2 * 1024**3  # bytes; in containers there is often little


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what is slow, and measure coverage only where there is some to be seen: it doubles what a test costs.

    Servers are processes of their own, what a feature does on PostgreSQL it does on SQLite too, and what is slow does
    many times what other tests do once.
    """
    # Else one worker may be alone with it at the end.
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in SLOW))
    known = {item.nodeid for item in items}
    for item in items:
        twin = item.nodeid.replace("sqlite", "postgresql")
        is_second = twin != item.nodeid and twin in known and any(folder in item.path.parents for folder in FEATURES)
        if is_second or item.get_closest_marker("server") or item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Leave out the fixtures as well of what is not measured; the plugin itself leaves out only the test."""
    plugin: Any = item.config.pluginmanager.getplugin("_cov")
    controller = plugin and plugin.cov_controller
    if not controller or not item.get_closest_marker("no_cover"):
        yield
        return
    controller.pause()
    try:
        yield
    finally:
        controller.resume()


class Databases:
    """The application on each database, made by the migrations once per worker and emptied for each test."""

    def __init__(self, folder: Path, postgres: Callable[[], str], worker: str) -> None:
        self._folder = folder
        self._postgres = postgres
        self._worker = worker
        self._apps: dict[str, Flask] = {}
        self._delete = ""

    def empty_app(self, kind: str) -> Flask:
        """Return the application on an empty, migrated database."""
        if kind not in self._apps:
            self._apps[kind] = self._make(kind)
        elif kind == "sqlite":
            self._restore_sqlite()
        else:
            self._empty_postgresql(self._apps[kind])
        return self._apps[kind]

    def _make(self, kind: str) -> Flask:
        data_dir = self._folder / kind
        data_dir.mkdir()
        env = {**ENV, "DATA_DIR": str(data_dir)}
        if kind == "sqlite":
            app = migrated(env)
            with app.app_context():
                db.engine.dispose()
            shutil.copy(data_dir / "project.db", self._folder / "pristine.db")
            return app
        template = ensure_template(self._postgres(), "project_template", _migrate_postgresql)
        url = create_database(self._postgres(), f"project_{self._worker}", template)
        return create_app({**env, "DATABASE_URL": url})

    def _restore_sqlite(self) -> None:
        # Page by page, since triggers forbid to delete from the audit log.
        with (
            closing(sqlite3.connect(self._folder / "pristine.db")) as pristine,
            closing(sqlite3.connect(self._folder / "sqlite" / "project.db")) as database,
        ):
            pristine.backup(database)

    def _empty_postgresql(self, app: Flask) -> None:
        with app.app_context(), db.engine.connect() as connection:
            if not self._delete:
                query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
                deletes = "; ".join(f"DELETE FROM {table}" for table in connection.scalars(text(query)))
                # As a replica: without the triggers of the audit log and the checks of foreign keys, all in one go.
                # TRUNCATE takes longer.
                role = "session_replication_role"
                self._delete = f"SET {role} = replica; {deletes}; RESET {role}"
            connection.exec_driver_sql(self._delete)

    def close(self) -> None:
        """Close the connections; the servers and files are thrown away anyway."""
        for app in self._apps.values():
            with app.app_context():
                db.engine.dispose()


def migrated(env: dict[str, str]) -> Flask:
    """Build an application and bring its database up to date."""
    app = create_app(env)
    with app.app_context():
        flask_migrate.upgrade()
    return app


def _migrate_postgresql(url: str) -> None:
    app = migrated({**ENV, "DATABASE_URL": url})
    with app.app_context():
        db.engine.dispose()


@pytest.fixture(scope="session")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[Databases]:
    """The databases of this worker; PostgreSQL is started when the first test wants it."""
    with ExitStack() as kept:
        folder = tmp_path_factory.mktemp("databases")
        if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
            folder = Path(kept.enter_context(TemporaryDirectory(dir=MEMORY, prefix="project-databases-")))
        found = Databases(folder, lambda: request.getfixturevalue("postgres_url"), worker_id)
        yield found
        found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def app(request: pytest.FixtureRequest, databases: Databases) -> Flask:
    """The application on an empty database; each test runs on both."""
    application = databases.empty_app(request.param)
    # The limiter is one object per process, and the application that a test made last would still have it.
    limiter.init_app(application)
    limiter._storage_dead = False
    application.extensions["outbox"].clear()
    return application


@pytest.fixture
def session(app: Flask) -> Iterator[Any]:
    """The database session of an application context, for tests of services.

    Tests that use the client must do without: a request would share this context and what is cached in it.
    """
    with app.app_context():
        yield db.session


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of the application."""
    return app.test_client()


@pytest.fixture
def outbox(app: Flask) -> list[Message]:
    """The mails that were sent."""
    messages: list[Message] = app.extensions["outbox"]
    return messages


@pytest.fixture
def run_jobs(app: Flask) -> Callable[[], int]:
    """Run the jobs that are due, and those that they defer; the first error is raised."""
    return lambda: jobs.run_pending(app)


class Caller(dict[str, str]):
    """The headers of a signed-in account, with the account and both tokens."""

    def __init__(self, user: User, issued: dict[str, Any]) -> None:
        super().__init__({"Authorization": f"Bearer {issued['access_token']}"})
        self.user = user
        self.access_token: str = issued["access_token"]
        self.refresh_token: str = issued["refresh_token"]
        self.refreshing = {"Authorization": f"Bearer {issued['refresh_token']}"}


@pytest.fixture
def sign_in(app: Flask) -> Callable[[User], Caller]:
    """Open a session for an account, without the cost of a password, and return its caller."""

    def open_session(user: User) -> Caller:
        with app.app_context():
            session = factories.make_session(user)
            return Caller(user, tokens.issue(SignIn(session, user, fresh=True)))

    return open_session


@pytest.fixture
def as_user(app: Flask, sign_in: Callable[[User], Caller]) -> Callable[..., Caller]:
    """Make an account (see factories.make_user) and return its caller, usable as headers."""

    def make(**attributes: Any) -> Caller:
        with app.app_context():
            user = factories.make_user(**attributes)
        return sign_in(user)

    return make


@pytest.fixture
def as_staff(as_user: Callable[..., Caller]) -> Caller:
    """A caller who is staff."""
    return as_user(role=Role.STAFF)


@pytest.fixture
def as_admin(as_user: Callable[..., Caller]) -> Caller:
    """A caller who is an administrator."""
    return as_user(role=Role.ADMIN)


@pytest.fixture
def in_app(app: Flask) -> Callable[..., Any]:
    """Call a function in an application context of its own; for factories and services beside a client."""

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with app.app_context():
            return function(*args, **kwargs)

    return call
