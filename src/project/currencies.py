"""Which currencies and amounts the providers take; amounts are in the minor unit of ISO 4217."""

from iso4217 import Currency

# Stripe counts these in another unit than ISO 4217 says, in some of its interfaces, or does not take them:
# https://docs.stripe.com/currencies#special-cases
DIVERGENT = frozenset({"CLF", "HUF", "IQD", "ISK", "LYD", "MGA", "TWD", "UGX", "UYI", "UYW"})


def check_currency(code: str) -> str:
    """Return the code in upper case.

    Raises:
        ValueError: it is not the code of money that is counted, or the provider counts it in another unit.
    """
    code = code.upper() if code.isascii() else code
    if decimals(code) is None:
        raise ValueError("This is not a currency of ISO 4217.")
    if code in DIVERGENT:
        raise ValueError("The payment provider counts this currency in a unit of its own; it is not supported.")
    return code


def check_amount(amount: int, currency: str) -> None:
    """Check an amount in a currency that `check_currency` has let pass.

    Raises:
        ValueError: it is not positive; or there are three decimals and the last digit, which cards cannot carry,
            is not 0.
    """
    if amount < 1:
        raise ValueError("The amount must be positive.")
    if decimals(currency) == 3 and amount % 10:
        raise ValueError("In this currency the last digit of an amount must be 0.")


def decimals(code: str) -> int | None:
    """Return how many digits the minor unit has; None where there is none, as of gold, or no such currency."""
    found = Currency.__members__.get(code)
    return found.exponent if found else None
