"""The settings of payments: the provider, its keys, and what may be paid."""

from dataclasses import dataclass
from datetime import timedelta

from project.currencies import check_currency
from project.environment import ConfigError, Reader

SANDBOX_KEY = "pk_sandbox"
# Real ones are longer; what is shorter is a slip.
MIN_KEY = 16


@dataclass(frozen=True, repr=False)
class Payments:
    """The provider and its keys, and the bounds of payments. It has no repr, so that no key reaches a log."""

    provider: str  # sandbox or stripe
    secret_key: str  # empty for the sandbox
    setup_key: str  # with it `flask payments setup-webhook` makes an endpoint, while the sandbox is still the provider
    publishable_key: str
    webhook_secrets: list[str]  # while one is replaced by another, both sign
    currencies: list[str]
    expire_after: timedelta
    max_attempts: int

    @property
    def livemode(self) -> bool:
        """True when real money moves."""
        return is_live(self.secret_key)


def is_live(key: str) -> bool:
    """Tell whether a key of Stripe's moves real money."""
    return key.startswith(("sk_live_", "rk_live_", "pk_live_"))


def read_payments(read: Reader) -> Payments:
    """Read and check what concerns payments.

    Raises:
        ConfigError: a variable is wrong, or Stripe lacks one of its keys. Without the secret of its webhooks anybody
            could say that a payment was made, so it does not start without.
    """
    provider = read.text("PAYMENTS_PROVIDER", "sandbox")
    if provider not in {"sandbox", "stripe"}:
        raise ConfigError("PAYMENTS_PROVIDER must be sandbox or stripe")
    is_stripe = provider == "stripe"
    secret_key = _key(read, "STRIPE_SECRET_KEY", "sk_", "rk_") if is_stripe or read.text("STRIPE_SECRET_KEY") else ""
    return Payments(
        provider=provider,
        secret_key=secret_key if is_stripe else "",
        setup_key=secret_key,
        publishable_key=_publishable_key(read) if is_stripe else SANDBOX_KEY,
        webhook_secrets=_webhook_secrets(read) if is_stripe else [],
        currencies=read.parse("PAYMENTS_CURRENCIES", "USD EUR GBP JPY", _currencies, "codes such as USD EUR GBP"),
        expire_after=read.duration("PAYMENTS_EXPIRE_AFTER", "24 h"),
        max_attempts=read.integer("PAYMENTS_MAX_ATTEMPTS", 10, at_least=1, at_most=1000),
    )


def _key(read: Reader, name: str, *prefixes: str) -> str:
    key = read.text(name)
    kinds = [prefix + mode for prefix in prefixes for mode in ("test_", "live_")]
    if not key.startswith(tuple(kinds)) or len(key) < MIN_KEY or not key.isascii() or not key.isprintable():
        raise ConfigError(f"{name} must be a key that begins with {' or '.join(kinds)}")
    return key


def _publishable_key(read: Reader) -> str:
    key = _key(read, "STRIPE_PUBLISHABLE_KEY", "pk_")
    if is_live(key) != is_live(read.text("STRIPE_SECRET_KEY")):
        raise ConfigError("STRIPE_PUBLISHABLE_KEY must be live or of the test mode, as STRIPE_SECRET_KEY is")
    return key


def _webhook_secrets(read: Reader) -> list[str]:
    secrets = read.names("STRIPE_WEBHOOK_SECRETS")
    if not secrets or not all(secret.startswith("whsec_") and len(secret) >= MIN_KEY for secret in secrets):
        expected = "the signing secrets of the webhook endpoint (whsec_…), separated by commas"
        cure = "`APP_ENV=development PAYMENTS_PROVIDER=sandbox flask payments setup-webhook` makes one"
        raise ConfigError(f"STRIPE_WEBHOOK_SECRETS must be {expected}; {cure}")
    return secrets


def _currencies(text: str) -> list[str]:
    codes = [check_currency(code) for code in text.replace(",", " ").split()]
    if not codes or len(set(codes)) < len(codes):
        raise ValueError("none, or one twice")
    return codes
