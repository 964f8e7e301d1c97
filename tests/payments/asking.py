"""What the tests of payments over HTTP share: a price, purchases, and what a customer's browser sends."""

from typing import Any
from uuid import uuid4

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

Headers = dict[str, str]


def key(value: str = "") -> Headers:
    """A new Idempotency-Key, or this one."""
    return {"Idempotency-Key": value or str(uuid4())}


def buy(client: FlaskClient, caller: Headers, price_id: object, *, headers: Headers | None = None, **body: Any) -> Any:
    """Make a payment; return it with its client secret."""
    answer = client.post("/v1/payments", json={"price_id": str(price_id), **body}, headers=caller | (headers or key()))
    assert answer.status_code == 201, answer.json
    return data(answer)


def confirm(client: FlaskClient, payment: Any, method: str = "pm_card_visa", **body: Any) -> TestResponse:
    """Pay as the customer's browser does."""
    secret = payment["client_secret"]
    path = f"/v1/sandbox/payment-intents/{secret.partition('_secret_')[0]}/confirm"
    return client.post(path, json={"client_secret": secret, "payment_method": method, **body})


def purchase(client: FlaskClient, caller: Headers, price_id: object, method: str = "pm_card_visa", **body: Any) -> Any:
    """Make a payment and pay it; return it as the provider has it then."""
    made = buy(client, caller, price_id, **body)
    assert confirm(client, made, method).status_code == 200
    return data(client.get(f"/v1/payments/{made['id']}?sync=true", headers=caller))


def refund(client: FlaskClient, staff: Headers, payment: Any, **body: Any) -> TestResponse:
    """Give money back."""
    return client.post(f"/v1/payments/{payment['id']}/refunds", json=body, headers=staff | key())


def data(answer: TestResponse) -> Any:
    """Return what an answer carries."""
    assert answer.json is not None
    return answer.json["data"]


def code(answer: TestResponse) -> str:
    """Return the code of a refusal; of the first field where the whole is not valid."""
    problem = answer.json or {}
    return str(problem["errors"][0]["code"] if "errors" in problem else problem["code"])
