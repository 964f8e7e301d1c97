"""Fixtures of payments."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from tests.payments import paying


@pytest.fixture
def price_id(in_app: Callable[..., Any]) -> UUID:
    """A price of 10.00 USD."""
    price: Any = in_app(paying.make_price)
    found: UUID = price.id
    return found
