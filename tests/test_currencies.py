"""Which currencies and amounts are taken."""

import pytest

from project.currencies import DIVERGENT, check_amount, check_currency, decimals


@pytest.mark.parametrize(("code", "expected"), [("usd", "USD"), ("EUR", "EUR"), ("jPy", "JPY"), ("KWD", "KWD")])
def test_a_currency_is_told_in_upper_case(code, expected):
    assert check_currency(code) == expected


@pytest.mark.parametrize("code", ["XXX", "XAU", "XTS", "USDT", "US", "", "US\0", "u\u017fd", "ABC", *sorted(DIVERGENT)])
def test_what_is_not_money_or_counted_otherwise_is_refused(code):
    with pytest.raises(ValueError, match="currency"):
        check_currency(code)


@pytest.mark.parametrize(("code", "digits"), [("JPY", 0), ("USD", 2), ("KWD", 3), ("XAU", None), ("ABC", None)])
def test_the_minor_unit_is_that_of_iso_4217(code, digits):
    assert decimals(code) == digits


@pytest.mark.parametrize(("amount", "currency"), [(1, "USD"), (500, "JPY"), (501, "JPY"), (5120, "KWD")])
def test_an_amount_is_taken(amount, currency):
    check_amount(amount, currency)


@pytest.mark.parametrize(("amount", "currency"), [(0, "USD"), (-1, "JPY"), (5124, "KWD")])
def test_an_amount_that_cannot_be_paid_is_refused(amount, currency):
    with pytest.raises(ValueError, match=r"amount|digit"):
        check_amount(amount, currency)
