"""Payments over HTTP: made, and paid as the customer's browser would."""

from typing import Any
from uuid import uuid4

from tests.http.client import Account


def make_payment(owner: Account, price_id: str, **values: Any) -> dict[str, Any]:
    """Make a payment of somebody's."""
    body = {"price_id": price_id, **values}
    response = owner.api.post("/v1/payments", json=body, headers={"Idempotency-Key": str(uuid4())})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()["data"]
    return made


def pay(owner: Account, payment: dict[str, Any], method: str = "pm_card_visa") -> dict[str, Any]:
    """Confirm a payment in the sandbox, and return it as it is then."""
    secret = payment["client_secret"]
    path = f"/v1/sandbox/payment-intents/{secret.partition('_secret_')[0]}/confirm"
    owner.api.post(path, token=None, json={"client_secret": secret, "payment_method": method})
    response = owner.api.get(f"/v1/payments/{payment['id']}?sync=true")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["data"]
    return found
