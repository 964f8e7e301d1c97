"""A thousand requests with one Idempotency-Key at once: one payment here, one at the gateway, one answer."""

import json
from collections import Counter

import pytest
from sqlalchemy import func, select

from project.database import Base, db
from project.idempotency_keys import IdempotencyKey
from project.payments.models import Payment
from project.payments.sandbox.models import SandboxIntent
from tests.payments import paying
from tests.payments.server.crowd import Answer, Client, at_once
from tests.payments.server.shop import Shop

REQUESTS = 1000
KEY = "one-press-on-pay"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_creates_with_one_key_make_one_payment(shop: Shop) -> None:
    customer, body = shop.sign_up(), {"price_id": new_price(shop)}

    def create(client: Client, _number: int) -> Answer:
        return client.post_until_answered("/v1/payments", body, key=KEY)

    with shop.server(WEB_CONCURRENCY="1" if shop.on_sqlite else "4") as server:
        answers = at_once(server.port, customer, range(REQUESTS), create)
    assert Counter(answer.said for answer in answers) == {"201": REQUESTS}
    # All of it the same, and the secret too, which is not kept with the answer.
    assert len({json.dumps(answer.data, sort_keys=True) for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert counted(shop, Payment, SandboxIntent, IdempotencyKey) == (1, 1, 1)


def new_price(shop: Shop) -> str:
    """Add a price."""
    with shop.looking():
        return str(paying.make_price().id)


def counted(shop: Shop, *models: type[Base]) -> tuple[int, ...]:
    """Count the rows of these tables."""
    with shop.looking():
        return tuple(db.session.scalar(select(func.count()).select_from(model)) or 0 for model in models)
