"""Servers under granian, one that is asked itself and one behind nginx."""

from collections.abc import Iterator

import pytest
import requests

from tests.conftest import ENV, migrated
from tests.factories import PASSWORD, make_user
from tests.granian.client import OWN, SIZE
from tests.http.front import run_front
from tests.servers import NGINX, AppServer, run_server


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of the servers here, whose database has an account."""
    found = {**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("data")), "FILES_MAX_SIZE": str(SIZE), "RATE_LIMITS": "off"}
    with migrated(found).app_context():
        make_user(email="ann@x.com")
    return found


@pytest.fixture(scope="session")
def server(env: dict[str, str]) -> Iterator[AppServer]:
    with run_server({**env, **OWN}, server="granian") as found:
        yield found


@pytest.fixture(scope="session")
def behind(env: dict[str, str]) -> Iterator[AppServer]:
    """A server that believes a proxy."""
    with run_server({**env, "PROXY_HOPS": "1", "PROXY_DROPS_UNDERSCORES": "on"}, server="granian") as found:
        yield found


@pytest.fixture(scope="session")
def front(behind: AppServer, env: dict[str, str]) -> Iterator[str]:
    """nginx before that server."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with run_front(behind.port, f"file://{env['DATA_DIR']}/files", buffering=True) as found:
        yield found.url


@pytest.fixture(scope="session")
def token(server: AppServer) -> str:
    login = {"email": "ann@x.com", "password": PASSWORD}
    answer = requests.post(f"{server.url}/v1/auth/login", json=login, timeout=10)
    return str(answer.json()["data"]["access_token"])
