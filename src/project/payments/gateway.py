"""The payment provider that the settings name. Both are the one adapter of stripe_gateway.py, over two transports."""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from project.config import settings

if TYPE_CHECKING:
    from project.payments.stripe_gateway import StripeGateway


def current_gateway(*, stripe_secret_key: str = "") -> "StripeGateway":
    """Return the provider's gateway; the key is for `stripe` only."""
    return _gateway(settings.payments_provider, stripe_secret_key)


@cache
def _gateway(provider: str, stripe_secret_key: str) -> "StripeGateway":
    # By name: the SDK takes 0.2 s and 20 MB to import, which processes that move no money need not spend.
    if provider == "stripe":
        adapter: Any = importlib.import_module("project.payments.stripe_gateway")
        return cast("StripeGateway", adapter.connect(stripe_secret_key))
    sandbox: Any = importlib.import_module("project.payments.sandbox.transport")
    return cast("StripeGateway", sandbox.connect())
