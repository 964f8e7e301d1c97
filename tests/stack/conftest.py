"""Fixtures of the tests of the whole topology."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.client import PASSWORD, Account, Api, log_in
from tests.servers import NGINX
from tests.stack.running import RunningStack, run_stack

ADMIN_EMAIL = "canary-admin@example.com"
PLENTY = "1000000/minute"
# More than all tests sign in, and few enough to be reached.
ANONYMOUS = 600
CLASSES = ("READ", "WRITE", "DOWNLOAD", "LOGIN_NETWORK", "LOGIN_ACCOUNT", "PASSWORD", "MAILBOX", "WEBHOOK", "SYNC")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: all need servers, and most a minute for them to start."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")
            item.add_marker("slow")
            item.add_marker(pytest.mark.skipif(NGINX is None, reason="nginx is not installed"))


@pytest.fixture(scope="package")
def stack() -> Iterator[RunningStack]:
    """The stack, with limits out of the way, except for those without a token."""
    with run_stack(
        {f"LIMIT_{name}": PLENTY for name in CLASSES} | {"LIMIT_ANONYMOUS": f"{ANONYMOUS}/15 minutes"}
    ) as found:
        yield found


@pytest.fixture(scope="package")
def admin(stack: RunningStack) -> Account:
    """An administrator, signed in through nginx."""
    return make_admin(stack)


def make_admin(stack: RunningStack) -> Account:
    """Create an administrator and sign in."""
    stack.flask("users", "create-admin", ADMIN_EMAIL, "--password-stdin", entered=PASSWORD)
    return log_in(Api(stack.url), ADMIN_EMAIL)


@pytest.fixture(scope="package")
def price(admin: Account) -> str:
    """A price of 10.00 USD."""
    body = {"name": "Lesson", "currency": "USD", "unit_amount": 1000}
    response = admin.api.post("/v1/prices", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["data"]["id"])
