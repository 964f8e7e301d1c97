"""Fixtures of the tests over real HTTP: two servers and a worker, or the deployment that TEST_BASE_URL names.

With TEST_BASE_URL the tests that need these servers are skipped; the others want TEST_OUTBOX, the folder of its
mails, TEST_ADMIN_EMAIL and TEST_ADMIN_PASSWORD, the JWT key of tests/http/tokens.py, and limits out of the way.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.http.client import (
    NEW_PASSWORD,
    PASSWORD,
    Account,
    Api,
    Outbox,
    eventually,
    log_in,
    new_address,
    register_and_login,
)
from tests.http.document import Operation, read_operations
from tests.http.tokens import JWT_KEY, KEY_ID
from tests.servers import AppServer, create_database, ensure_template, run_server
from tests.servers.app import INHERITED, ROOT
from tests.servers.process import running

FLASK = [sys.executable, "-m", "flask"]
RENEWED_AFTER = 240  # seconds; an access token lives for 600
PLENTY = "1000000/minute"
# Production, since its log is JSON; limits out of the way, except where a test is about them.
SETTINGS = {
    "APP_ENV": "production",
    "SECRET_KEY": "a secret key of these tests that is long enough",
    "JWT_SECRET_KEYS": f"{KEY_ID}:{JWT_KEY}",
    "PAYMENTS_SANDBOX_IN_PRODUCTION": "1",
    "WEB_CONCURRENCY": "1",
    "LIMIT_READ": PLENTY,
    "LIMIT_WRITE": PLENTY,
    "LIMIT_DOWNLOAD": PLENTY,
    "LIMIT_ANONYMOUS": PLENTY,
    "LIMIT_LOGIN_NETWORK": PLENTY,
    "LIMIT_LOGIN_ACCOUNT": PLENTY,
    "LIMIT_PASSWORD": PLENTY,
    "LIMIT_MAILBOX": PLENTY,
    "LIMIT_WEBHOOK": PLENTY,
    "LIMIT_SYNC": PLENTY,
}
Start = Callable[..., Api]
ADMIN_EMAIL = "canary-admin@example.com"
# gunicorn's master speaks before the application is loaded and has set up the log.
GUNICORN_LINE = re.compile(r"\[[-0-9 :+]+\] \[\d+\] \[[A-Z]+\] [\w .:/()@-]+")
SECRETS = re.compile(rf"canary|{PASSWORD}|{NEW_PASSWORD}|eyJ[\w-]{{8,}}\.|\$argon2|Bearer [\w-]", re.IGNORECASE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: all need servers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")


@dataclass(frozen=True)
class Cluster:
    """Two servers, the second with two processes, and a worker, on one PostgreSQL and one Valkey."""

    env: Mapping[str, str]
    first: AppServer
    second: AppServer
    worker_log: Path

    @property
    def logs(self) -> list[str]:
        """All that was logged so far."""
        return [self.first.log, self.second.log, self.worker_log.read_text(errors="replace")]

    def first_logged(self, request_id: str) -> dict[str, Any]:
        """Wait for the line of a request in the log of the first server and return it."""

        def look() -> dict[str, Any] | None:
            lines = [line for line in self.first.log.splitlines() if request_id in line]
            return json.loads(lines[-1]) if lines else None

        return eventually(look, f"request {request_id} in the log")


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a migrated database, to be copied."""
    return ensure_template(
        postgres_url, "project_template", lambda url: flask({**SETTINGS, "DATABASE_URL": url}, "db", "upgrade")
    )


@pytest.fixture(scope="session")
def cluster(
    postgres_url: str, template: str, valkey_url: str, worker_id: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The servers of these tests. At the end their logs must be clean."""
    if "TEST_BASE_URL" in os.environ:
        pytest.skip("this test needs servers of its own")
    data_dir = tmp_path_factory.mktemp("cluster")
    database_url = create_database(postgres_url, f"project_http_{worker_id}", template)
    env = {**SETTINGS, "DATABASE_URL": database_url, "REDIS_URL": valkey_url, "DATA_DIR": str(data_dir)}
    flask(env, "users", "create-admin", ADMIN_EMAIL, "--password-stdin", entered=PASSWORD)
    log = data_dir / "worker.log"
    with run_worker(env, log), run_server(env) as first, run_server({**env, "WEB_CONCURRENCY": "2"}) as second:
        found = Cluster(env, first, second, log)
        yield found
        for text in found.logs:
            check_log(text)


def flask(env: Mapping[str, str], *arguments: str, entered: str = "") -> None:
    """Run a `flask` command with these settings."""
    done = subprocess.run(
        [*FLASK, *arguments], input=entered, text=True, check=False, cwd=ROOT, env=_inherited(env), capture_output=True
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def run_worker(env: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run `flask worker` until the block ends."""
    ready = "worker_started"
    with running([*FLASK, "worker"], log=log, ready=lambda: ready in log.read_text(), env=_inherited(env), cwd=ROOT):
        yield


def _inherited(env: Mapping[str, str]) -> dict[str, str]:
    return {**{name: os.environ[name] for name in INHERITED if name in os.environ}, **env}


def check_log(text: str) -> None:
    """Check that a log is one JSON object a line, without secrets, addresses and unexpected errors."""
    for line in text.splitlines():
        assert not SECRETS.search(line), line
        if not GUNICORN_LINE.fullmatch(line) and line != "Running jobs; Ctrl-C stops.":
            entry = json.loads(line)
            assert {"event", "level", "time"} <= set(entry)
            assert entry["level"] not in {"error", "critical"}, line


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest) -> str:
    """Where the API answers that is tested."""
    if url := os.environ.get("TEST_BASE_URL"):
        return url.rstrip("/")
    return str(request.getfixturevalue("cluster").first.url)


@pytest.fixture(scope="session")
def outbox(request: pytest.FixtureRequest) -> Outbox:
    """The mails of the API that is tested."""
    if folder := os.environ.get("TEST_OUTBOX"):
        return Outbox(Path(folder))
    return Outbox(Path(request.getfixturevalue("cluster").env["DATA_DIR"]) / "outbox")


@pytest.fixture(scope="session")
def anonymous(base_url: str) -> Api:
    """A client without a token."""
    return Api(base_url)


class Lasting(list[tuple[Account, float]]):
    """The accounts that outlive a test, and when each has signed in."""

    def keep(self, account: Account) -> Account:
        """Have an account renewed; return it."""
        self.append((account, time.monotonic()))
        return account

    def renew(self) -> None:
        """Sign in again with those whose access token has not long to live."""
        for number, (account, since) in enumerate(self):
            if time.monotonic() - since > RENEWED_AFTER:
                account.api.token = log_in(account.api, account.email, account.password).access_token
                self[number] = (account, time.monotonic())


@pytest.fixture(scope="session")
def lasting() -> Lasting:
    """The accounts that outlive a test."""
    return Lasting()


@pytest.fixture(autouse=True)
def renewed(lasting: Lasting) -> None:
    """Give each test accounts whose tokens will not expire while it runs."""
    lasting.renew()


@pytest.fixture(scope="session")
def user(anonymous: Api, outbox: Outbox, lasting: Lasting) -> Account:
    """A signed-in user, whom no test signs out or changes for good."""
    return lasting.keep(register_and_login(anonymous, outbox))


@pytest.fixture
def new_user(anonymous: Api, outbox: Outbox) -> Callable[[], Account]:
    """Make a signed-in user to do anything with."""
    return lambda: register_and_login(anonymous, outbox)


@pytest.fixture(scope="session")
def admin(anonymous: Api, lasting: Lasting) -> Account:
    """A signed-in administrator, whom no test signs out or changes for good."""
    address = os.environ.get("TEST_ADMIN_EMAIL", ADMIN_EMAIL)
    return lasting.keep(log_in(anonymous, address, os.environ.get("TEST_ADMIN_PASSWORD", PASSWORD)))


@pytest.fixture(scope="session")
def invite(anonymous: Api, admin: Account, outbox: Outbox) -> Callable[[str], Account]:
    """Make a signed-in account of a role, by the administrator's invitation."""

    def make(role: str) -> Account:
        address = new_address()
        response = admin.api.post("/v1/users", json={"email": address, "role": role})
        assert response.status_code == 201, response.text
        token = outbox.token("invitation", address)
        body = {"token": token, "password": PASSWORD}
        assert anonymous.post("/v1/auth/reset-password", json=body).status_code == 204
        return log_in(anonymous, address)

    return make


@pytest.fixture(scope="session")
def run_with(cluster: Cluster) -> Iterator[Start]:
    """Start another server on the same database with other settings, once for each set of them."""
    started: dict[tuple[tuple[str, str], ...], Api] = {}
    with ExitStack() as servers:

        def start(**settings: str) -> Api:
            key = tuple(sorted(settings.items()))
            if key not in started:
                started[key] = Api(servers.enter_context(run_server({**cluster.env, **settings})).url)
            return started[key]

        yield start


@pytest.fixture(scope="session")
def json_operations(anonymous: Api) -> list[Operation]:
    """The operations that take JSON."""
    return [operation for operation in read_operations(anonymous) if operation.properties]
