"""Fixtures of the tests of payments on the server that serves in production."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import ENV, migrated
from tests.payments.server.shop import Shop
from tests.servers import create_database

Make = Callable[[str], Shop]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: all need servers."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, make_shop: Make) -> Shop:
    """An application on each database."""
    return make_shop(request.param)


@pytest.fixture(scope="session")
def make_shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Make:
    """Make an application on a new database, "sqlite" or "postgresql", whose limits are out of the way."""
    numbers = count(1)

    def make(kind: str) -> Shop:
        env = {**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("shop")), "RATE_LIMITS": "off"}
        if kind == "postgresql":
            server = request.getfixturevalue("postgres_url")
            env["DATABASE_URL"] = create_database(server, f"project_payments_{worker_id}_{next(numbers)}")
        shop = Shop(migrated(env), env)
        with shop.looking():
            return shop

    return make
