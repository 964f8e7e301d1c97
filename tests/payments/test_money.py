"""Amounts as people read them."""

import pytest

from project.payments.money import display


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (125000, "EUR", "1,250.00 EUR"),
        (5, "USD", "0.05 USD"),
        (0, "USD", "0.00 USD"),
        (500, "JPY", "500 JPY"),
        (1234567, "JPY", "1,234,567 JPY"),
        (1500, "KWD", "1.500 KWD"),
        (-150, "EUR", "-1.50 EUR"),
        (-5, "JPY", "-5 JPY"),
        (99_999_999, "EUR", "999,999.99 EUR"),
        (2**63 - 1, "USD", "92,233,720,368,547,758.07 USD"),
    ],
)
def test_an_amount_has_the_digits_of_its_currency(amount, currency, text):
    assert display(amount, currency) == text
