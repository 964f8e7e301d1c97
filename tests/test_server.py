"""What `make run` does: a database that is ready, a greeting, and processes that start and end together."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import flask_migrate
import pytest
import requests
from flask import Flask
from sqlalchemy import select

from project import create_app, server
from project.database import db
from project.seeds import DEMO_ACCOUNTS
from project.users.models import User
from tests.conftest import ENV
from tests.factories import make_user
from tests.servers import create_database
from tests.servers.app import INHERITED
from tests.servers.process import free_port, running

ROOT = Path(__file__).parents[1]
START = [sys.executable, "-m", "flask", "start"]
SECONDS = 20


# --- prepare ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_app(tmp_path) -> Iterator[Callable[..., Flask]]:
    """Make an application on an SQLite database that is not there yet."""
    made: list[Flask] = []

    def make(**settings: str) -> Flask:
        made.append(create_app({**ENV, "DATA_DIR": str(tmp_path / "data"), "PORT": str(free_port()), **settings}))
        return made[-1]

    yield make
    for app in made:
        with app.app_context():
            db.engine.dispose()


def prepare(app: Flask) -> None:
    with app.app_context():
        server.prepare()


def addresses(app: Flask) -> set[str | None]:
    with app.app_context():
        return set(db.session.scalars(select(User.email)))


def test_the_first_run_makes_the_database_and_the_demo_accounts_and_says_how_to_go_on(make_app, capsys, tmp_path):
    app = make_app(PUBLIC_URL="http://127.0.0.1:8123")
    prepare(app)

    printed = capsys.readouterr().out
    assert "http://127.0.0.1:8123/v1\n" in printed
    assert "http://127.0.0.1:8123/docs\n" in printed
    assert f"{tmp_path}/data/outbox" in printed
    assert addresses(app) == set(DEMO_ACCOUNTS)
    login = {"email": "admin@example.com", "password": password_in(printed)}
    assert app.test_client().post("/v1/auth/login", json=login).status_code == 200


def password_in(text: str) -> str:
    """Return the password of the demo accounts that was printed."""
    found = re.search(r"demo-[\w-]{16}", text)
    assert found
    return found[0]


def test_later_runs_leave_the_accounts_and_show_no_password(make_app, capsys):
    prepare(make_app())
    first = password_in(capsys.readouterr().out)
    prepare(make_app())

    assert first not in capsys.readouterr().out


def test_who_has_accounts_gets_no_demo_accounts(make_app, capsys):
    app = make_app()
    with app.app_context():
        flask_migrate.upgrade()
        make_user(email="ann@x.com")
    prepare(app)

    assert addresses(app) == {"ann@x.com"}


def test_production_gets_no_demo_accounts(make_app, capsys):
    knowingly = {"ALLOW_SQLITE_IN_PRODUCTION": "1", "PAYMENTS_SANDBOX_IN_PRODUCTION": "1"}
    app = make_app(APP_ENV="production", **knowingly)
    prepare(app)

    assert addresses(app) == set()
    assert "create-admin" in capsys.readouterr().out


def test_a_port_that_is_taken_is_one_line_and_nothing_is_made(make_app, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = make_app(PORT=str(port)).test_cli_runner().invoke(args=["start"])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: PORT {port} is in use; try another.\n"
    assert not (tmp_path / "data" / "project.db").exists()


def test_a_server_that_is_not_installed_is_one_line(make_app, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    result = make_app(SERVER="granian").test_cli_runner().invoke(args=["start"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: SERVER=granian is not installed: pip install -r requirements/granian.txt\n"


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def started(tmp_path: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Run `flask start` and give the process, its address and its log."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    own = {"APP_ENV": "development", "DATA_DIR": str(tmp_path / "data"), "PORT": str(port), "WEB_CONCURRENCY": "1"}

    def is_ready() -> bool:
        try:
            return requests.get(f"{url}/readyz", timeout=5).ok
        except requests.ConnectionError:
            return False

    log = tmp_path / "log"
    env = {**inherited, **own, **settings}
    with running(START, log=log, ready=is_ready, env=env, cwd=ROOT, is_ours=True) as process:
        yield process, url, log


def mail_arrives(tmp_path: Path, url: str) -> bool:
    """Register an account, and tell whether its mail was written by a job in time."""
    body = {"email": "zoe@example.com", "password": "plenty of unrelated words"}
    assert requests.post(f"{url}/v1/auth/register", json=body, timeout=10).status_code == 202
    deadline = time.monotonic() + SECONDS
    outbox = tmp_path / "data" / "outbox"
    while not list(outbox.glob("*.eml")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(list(outbox.glob("*.eml")))


@pytest.mark.server
@pytest.mark.parametrize("kind", ["gunicorn", "granian"])
def test_on_sqlite_one_process_serves_and_runs_the_jobs(tmp_path, kind):
    with started(tmp_path, SERVER=kind) as (process, url, log):
        login = {"email": "demo@example.com", "password": password_in(log.read_text())}
        assert requests.post(f"{url}/v1/auth/login", json=login, timeout=10).status_code == 200
        assert mail_arrives(tmp_path, url)

    assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert f"Starting {kind}" in log.read_text()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Tell whether there is such a process, and not only what is left of one."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux", reason="it looks for the children in /proc")
def test_on_postgresql_a_worker_runs_beside_the_server_and_none_lives_without_the_other(
    tmp_path, postgres_url, worker_id
):
    database_url = create_database(postgres_url, f"project_start_{worker_id}")
    with started(tmp_path, DATABASE_URL=database_url) as (process, url, _):
        assert mail_arrives(tmp_path, url)
        both = children(process)
        assert len(both) == 2
        os.kill(both[-1], signal.SIGKILL)
        status = process.wait(SECONDS)

    assert status == 1
    assert [pid for pid in both if is_running(pid)] == []


# Two children, of which the second waits for TERM, says so, and then ends well.
SUPERVISE = """
import sys
from project.server import _supervise
wait = '''
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: exit(0))
os.write(1, b"w")
while True:
    time.sleep(0.05)
'''
_supervise([[sys.executable, "-c", {first!r} or wait], [sys.executable, "-c", wait]])
"""


@contextmanager
def supervising(first: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run two commands together; the first one waits as well unless it is said what it does."""
    command = [sys.executable, "-c", SUPERVISE.format(first=first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_in_good_order(number):
    with supervising() as process:
        assert process.stdout
        assert process.stdout.read(2) == "ww"
        process.send_signal(number)
        # The end of the output is the end of the last child.
        assert process.stdout.read() == ""

    assert process.returncode == 0


@pytest.mark.parametrize(("first", "status"), [("pass", 0), ("exit(3)", 1)])
def test_the_end_of_one_process_is_the_end_of_all_and_its_failure_theirs(first, status):
    with supervising(first) as process:
        assert process.wait(SECONDS) == status
        assert process.stdout
        assert process.stdout.read() in {"", "w"}
