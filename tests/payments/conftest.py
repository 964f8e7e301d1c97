"""Fixtures of payments."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from project.payments import gateway as adapters
from tests.payments import paying


@pytest.fixture
def price_id(in_app: Callable[..., Any]) -> UUID:
    """A price of 10.00 USD."""
    price: Any = in_app(paying.make_price)
    found: UUID = price.id
    return found


@pytest.fixture
def set_payments(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give settings of payments other values, such as `max_attempts=3`."""

    def change(**values: Any) -> None:
        settings = app.extensions["settings"]
        payments = replace(settings.payments, **values)
        monkeypatch.setitem(app.extensions, "settings", replace(settings, payments=payments))

    return change


@pytest.fixture
def gateway(app: Flask, monkeypatch: pytest.MonkeyPatch) -> paying.WatchedGateway:
    """The sandbox's gateway, which tells what it was asked for, and fails as it is told to."""
    with app.app_context():
        watched = paying.WatchedGateway(adapters.current_gateway())
    monkeypatch.setattr(adapters, "_gateway", lambda _provider, _secret_key: watched)
    return watched
