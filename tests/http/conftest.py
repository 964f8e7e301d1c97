"""Fixtures of the tests over real HTTP: two servers and a worker, `make stack`, or any installation.

TEST_STACK=bucket, =disk or =x-accel lets the same tests run through the nginx of `make stack`, which is started for
them. TEST_BASE_URL names an installation that runs already: what needs more than its address is skipped, and the rest
wants TEST_OUTBOX, the folder of its mails, TEST_ADMIN_EMAIL and TEST_ADMIN_PASSWORD, the JWT key of
tests/http/tokens.py, and limits out of the way (LIMITS in tests/http/cluster.py).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.http.client import PASSWORD, Account, Api, Outbox, log_in, new_address, register_and_login
from tests.http.cluster import ADMIN_EMAIL, SETTINGS, Cluster, flask, own_servers, whole_stack
from tests.http.document import Operation, read_operations
from tests.servers import create_database, ensure_template

RENEWED_AFTER = 240  # seconds; an access token lives for 600
Start = Callable[..., Api]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: all need servers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a migrated database, to be copied."""
    return ensure_template(
        postgres_url, "project_template", lambda url: flask({**SETTINGS, "DATABASE_URL": url}, "db", "upgrade")
    )


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, worker_id: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The servers of these tests, with an administrator. At the end their logs must be clean."""
    if "TEST_BASE_URL" in os.environ:
        pytest.skip("this test sets its servers up, or looks at their processes, logs and storage")
    data_dir = tmp_path_factory.mktemp("cluster")
    if mode := os.environ.get("TEST_STACK"):
        servers = whole_stack(mode, data_dir / "files")
    else:
        template, valkey_url = (request.getfixturevalue(name) for name in ("template", "valkey_url"))
        database_url = create_database(request.getfixturevalue("postgres_url"), f"project_http_{worker_id}", template)
        own = {"DATABASE_URL": database_url, "REDIS_URL": valkey_url, "DATA_DIR": str(data_dir)}
        servers = own_servers({**SETTINGS, **own})
    with servers as found:
        flask(found.env, "users", "create-admin", ADMIN_EMAIL, "--password-stdin", entered=PASSWORD)
        yield found


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
                started[key] = Api(servers.enter_context(cluster.server_with(settings)))
            return started[key]

        yield start


@pytest.fixture(scope="session")
def json_operations(anonymous: Api) -> list[Operation]:
    """The operations that take JSON."""
    return [operation for operation in read_operations(anonymous) if operation.properties]
