"""The payment provider that the settings name. Both are the one adapter of stripe_gateway.py, over two transports."""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from project.config import settings

if TYPE_CHECKING:
    from project.payments.stripe_gateway import StripeGateway


def current_gateway() -> "StripeGateway":
    """Return the provider's gateway."""
    return _gateway(settings.payments.provider, settings.payments.secret_key)


@cache
def _gateway(provider: str, secret_key: str) -> "StripeGateway":
    # By name: the SDK takes 0.2 s and 20 MB to import, which processes that move no money need not spend.
    if provider == "stripe":
        adapter: Any = importlib.import_module("project.payments.stripe_gateway")
        return cast("StripeGateway", adapter.connect(secret_key))
    sandbox: Any = importlib.import_module("project.payments.sandbox.transport")
    return cast("StripeGateway", sandbox.connect())
