"""Amounts as people read them."""

from project.currencies import decimals


def display(amount: int, currency: str) -> str:
    """Return an amount in the minor unit as text, such as 1,250.00 EUR; no float is on the way."""
    digits = decimals(currency) or 0
    whole, minor = divmod(abs(amount), 10**digits)
    number = f"{whole:,}.{minor:0{digits}d}" if digits else f"{whole:,}"
    return f"{'-' if amount < 0 else ''}{number} {currency}"
