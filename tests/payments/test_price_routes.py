"""Prices over HTTP: who sets and sees them, and which amounts and currencies they may have."""

import pytest

from project.payments.schemas import PriceOut
from tests.payments.asking import code, data, key

LESSON = {"name": "Lesson", "currency": "EUR", "unit_amount": 1250}


@pytest.mark.parametrize("role", ["user", "staff"])
def test_only_admins_make_and_change_prices(client, as_user, price_id, role):
    caller = as_user(role=role)
    assert client.post("/v1/prices", json=LESSON, headers=caller).status_code == 403
    assert client.patch(f"/v1/prices/{price_id}", json={"active": False}, headers=caller).status_code == 403


def test_a_price_is_made_once_for_each_key_and_shown_to_everybody(client, as_admin):
    headers = as_admin | key()
    made, again = (client.post("/v1/prices", json=LESSON, headers=headers) for _ in range(2))

    assert (made.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert set(data(made)) == set(PriceOut().fields)
    assert data(made) | LESSON == data(made)
    assert client.get(made.headers["Location"]).json == made.json
    assert data(client.get("/v1/prices")) == [data(made)]


def test_nobody_sees_a_retired_price_but_staff(client, as_user, as_staff, as_admin, price_id):
    client.patch(f"/v1/prices/{price_id}", json={"active": False}, headers=as_admin)

    for caller in (dict[str, str](), as_user()):
        assert client.get(f"/v1/prices/{price_id}", headers=caller).status_code == 404
        assert data(client.get("/v1/prices", headers=caller)) == []
    assert client.get("/v1/prices?active=false").status_code == 401
    assert client.get("/v1/prices?active=false", headers=as_user()).status_code == 403
    assert [price["id"] for price in data(client.get("/v1/prices?active=false", headers=as_staff))] == [str(price_id)]
    assert data(client.get(f"/v1/prices/{price_id}", headers=as_staff))["active"] is False


def test_a_price_may_be_called_otherwise_but_never_cost_otherwise(client, as_admin, price_id):
    path = f"/v1/prices/{price_id}"
    renamed = client.patch(path, json={"name": "Lessons", "description": "Two hours"}, headers=as_admin)
    assert data(renamed) | {"name": "Lessons", "description": "Two hours", "unit_amount": 1000} == data(renamed)
    for change in ({"unit_amount": 1}, {"currency": "EUR"}, {"min_amount": 1, "max_amount": 2}):
        assert code(client.patch(path, json=change, headers=as_admin)) == "unknown_field"


def test_a_price_that_somebody_else_changed_meanwhile_is_not_overwritten(client, as_admin, price_id):
    path = f"/v1/prices/{price_id}"
    seen = client.get(path).headers["ETag"]
    assert client.get(path, headers={"If-None-Match": seen}).status_code == 304
    assert client.patch(path, json={"name": "Mine"}, headers=as_admin | {"If-Match": seen}).status_code == 200
    assert client.patch(path, json={"name": "Yours"}, headers=as_admin | {"If-Match": seen}).status_code == 412


@pytest.mark.parametrize(
    ("amounts", "pointer", "expected"),
    [
        ({}, "/unit_amount", "invalid_amount"),
        ({"unit_amount": None, "min_amount": None}, "/unit_amount", "invalid_amount"),
        ({"unit_amount": 100, "min_amount": 1, "max_amount": 5}, "/unit_amount", "invalid_amount"),
        ({"min_amount": 100}, "/unit_amount", "invalid_amount"),
        ({"max_amount": 100}, "/unit_amount", "invalid_amount"),
        ({"min_amount": 100, "max_amount": 99}, "/max_amount", "invalid_amount"),
        ({"unit_amount": 0}, "/unit_amount", "invalid_amount"),
        ({"unit_amount": 100_000_000}, "/unit_amount", "invalid_amount"),
        ({"unit_amount": "100"}, "/unit_amount", "invalid_type"),
        ({"unit_amount": 10.0}, "/unit_amount", "invalid_type"),
    ],
)
def test_a_price_is_fixed_or_has_both_bounds(client, as_admin, amounts, pointer, expected):
    refused = client.post("/v1/prices", json={"name": "Lesson", "currency": "EUR", **amounts}, headers=as_admin)
    assert refused.status_code == 422
    assert (refused.json["errors"][0]["pointer"], code(refused)) == (pointer, expected)


@pytest.mark.parametrize(
    "currency", ["XXX", "ZZZ", "XAU", "USDT", "US", "US\u0000", "ÜSD", "", "ISK", "CHF", 840, None]
)
def test_a_price_is_in_a_currency_that_is_offered(client, as_admin, currency):
    refused = client.post("/v1/prices", json=LESSON | {"currency": currency}, headers=as_admin)
    assert refused.status_code == 422
    assert refused.json["errors"][0]["pointer"] == "/currency"


def test_a_currency_may_be_written_in_lower_case(client, as_admin):
    assert data(client.post("/v1/prices", json=LESSON | {"currency": "jpy"}, headers=as_admin))["currency"] == "JPY"


def test_null_is_as_good_as_absent(client, as_admin):
    nulls = {"description": None, "min_amount": None, "max_amount": None}
    assert client.post("/v1/prices", json=LESSON | nulls, headers=as_admin).status_code == 201
