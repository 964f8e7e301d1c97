"""The pytest plugin that gives tests one PostgreSQL and one Valkey per test run, and an S3.

Under xdist the controller starts them and tells the workers where they are; without it they start
when a test first asks. TEST_DATABASE_URL, TEST_REDIS_URL and TEST_S3_URL name servers to use instead.
"""

import os
from contextlib import ExitStack
from uuid import uuid4

import pytest
from sqlalchemy.engine import make_url
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.servers import CREDENTIALS, make_bucket, run_postgres, run_s3, run_valkey

pytest_plugins = ["tests.log_watch"]

SERVERS = {
    "postgres": ("TEST_DATABASE_URL", run_postgres),
    "valkey": ("TEST_REDIS_URL", run_valkey),
    "s3": ("TEST_S3_URL", run_s3),
}
# The S3 answers after a third of a second, and few tests want it: a worker whose tests do starts its own.
SHARED = ("postgres", "valkey")
# Folders whose tests share servers; elsewhere those of a file do.
TOGETHER = ("tests/chaos/", "tests/http/", "tests/stack/")


class Servers:
    """The servers of this test run, each started when it is first asked for."""

    def __init__(self, known: dict[str, str]) -> None:
        self._urls = dict(known)
        self._running = ExitStack()

    def url(self, name: str) -> str:
        """Where the server of this name answers."""
        if name not in self._urls:
            variable, run = SERVERS[name]
            self._urls[name] = os.environ.get(variable) or self._running.enter_context(run())
        return self._urls[name]

    def stop(self) -> None:
        """Stop those that we started."""
        self._running.close()


SERVERS_KEY = pytest.StashKey[Servers]()


def pytest_configure(config: pytest.Config) -> None:
    """Take over the addresses that the xdist controller gave to this worker, if it is one."""
    config.stash[SERVERS_KEY] = Servers(getattr(config, "workerinput", {}).get("server_urls", {}))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """With `-n auto` one worker more than there are cores: tests of servers that fail wait most of the time."""
    return (os.cpu_count() or 1) + 1


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Gives all tests that share servers, a database or a browser to one worker, which starts them once.

    Not by the marks of xdist: it writes those into names that pytest 9.2 does not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Say which tests a worker gets with `--dist loadgroup`."""
    return Together(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """On the xdist controller: start the servers before the first worker and pass their addresses on."""
    servers = node.config.stash[SERVERS_KEY]
    node.workerinput["server_urls"] = {name: servers.url(name) for name in SHARED}


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers at the end of the run, also after Ctrl-C."""
    config.stash[SERVERS_KEY].stop()


@pytest.fixture(scope="session")
def postgres_url(pytestconfig: pytest.Config) -> str:
    """The URL of a PostgreSQL superuser, from which a test makes databases of its own.

    All workers share the server: put `worker_id` into the names of databases.
    """
    url = make_url(pytestconfig.stash[SERVERS_KEY].url("postgres"))
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def valkey_url(pytestconfig: pytest.Config) -> str:
    """The URL of a Valkey database that no other worker uses, so that a test may flush it.

    An address from TEST_REDIS_URL is used as it is.
    """
    url = pytestconfig.stash[SERVERS_KEY].url("valkey")
    if os.environ.get("TEST_REDIS_URL"):
        return url
    worker = getattr(pytestconfig, "workerinput", {}).get("workerid", "gw0")
    return f"{url}/{worker.removeprefix('gw')}"


@pytest.fixture(scope="session")
def s3_url(pytestconfig: pytest.Config) -> str:
    """The endpoint of an S3. What is at TEST_S3_URL takes the credentials of the environment."""
    return pytestconfig.stash[SERVERS_KEY].url("s3")


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the credentials into the environment, where boto3 looks when it makes a client."""
    if os.environ.get("TEST_S3_URL"):
        return
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket_url(s3_url: str, s3_credentials: None) -> str:
    """The STORAGE_URL of an empty bucket."""
    return make_bucket(s3_url, f"test-{uuid4()}")
