"""The pytest plugin that gives tests one PostgreSQL and one Valkey per test run.

Under xdist the controller starts them and tells the workers where they are; without it they start
when a test first asks. TEST_DATABASE_URL and TEST_REDIS_URL name servers to use instead.
"""

import os
from contextlib import ExitStack

import pytest
from sqlalchemy.engine import make_url

from tests.servers import run_postgres, run_valkey

SERVERS = {
    "postgres": ("TEST_DATABASE_URL", run_postgres),
    "valkey": ("TEST_REDIS_URL", run_valkey),
}


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
def pytest_configure_node(node) -> None:
    """On the xdist controller: start the servers before the first worker and pass their addresses on."""
    servers = node.config.stash[SERVERS_KEY]
    node.workerinput["server_urls"] = {name: servers.url(name) for name in SERVERS}


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
