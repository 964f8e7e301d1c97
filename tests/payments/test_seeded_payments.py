"""The prices and payments of the demo: one in each state that a client has to show, made once."""

from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select, update

from project import create_app, seeds
from project.database import Base, db, transaction
from project.payments import ledger_check, reconcile
from project.payments.gateway import current_gateway
from project.payments.journal import EventStatus, LedgerEntry, WebhookEvent
from project.payments.models import Payment, PaymentStatus, Price, Refund
from project.payments.reconcile import Report
from tests.conftest import ENV
from tests.factories import make_user

STATES = {
    "demo-paid": "succeeded",
    "demo-refunded": "succeeded",
    "demo-declined": "requires_payment_method",
    "demo-authorized": "requires_capture",
    "demo-canceled": "canceled",
}


def payments() -> dict[str | None, Payment]:
    return {payment.reference: payment for payment in db.session.scalars(select(Payment))}


def count(model: type[Base]) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def test_there_is_a_payment_in_each_state(session):
    seeds.seed()

    found = payments()
    assert {reference: payment.status for reference, payment in found.items()} == STATES
    assert (found["demo-refunded"].refund_status, found["demo-refunded"].amount_refunded) == ("partial", 2000)
    assert found["demo-declined"].failure_code == "card_declined"
    assert found["demo-declined"].attempts == 1
    assert found["demo-authorized"].amount_capturable == found["demo-authorized"].amount
    assert found["demo-paid"].amount == 2 * 4500
    assert {str(found[name].receipt_number)[-1] for name in ("demo-paid", "demo-refunded")} == {"1", "2"}


def test_there_is_a_fixed_price_and_an_open_one(session):
    seeds.seed()

    fixed, chosen = session.scalars(select(Price).order_by(Price.id)).all()
    assert (fixed.unit_amount, fixed.min_amount, fixed.active, fixed.currency) == (4500, None, True, "USD")
    assert (chosen.unit_amount, chosen.min_amount, chosen.max_amount) == (None, 500, 100_000)


def test_every_webhook_of_it_was_acted_on_and_the_books_agree(session):
    seeds.seed()

    assert set(session.scalars(select(WebhookEvent.status))) == {EventStatus.PROCESSED}
    assert ledger_check.verify() == []
    assert reconcile.reconcile() == Report()


def test_the_jobs_that_wait_afterwards_change_nothing_but_send_the_receipts(app, in_app, run_jobs, outbox):
    in_app(seeds.seed)
    before = in_app(lambda: [(one.reference, one.status, one.version) for one in payments().values()])
    run_jobs()

    assert in_app(lambda: [(one.reference, one.status, one.version) for one in payments().values()]) == before
    assert [message.to for message in outbox] == ["demo@example.com"] * 2


def test_a_second_time_nothing_is_made(session):
    seeds.seed()
    kinds: tuple[type[Base], ...] = (Price, Payment, Refund, WebhookEvent, LedgerEntry)
    before = [count(model) for model in kinds]

    assert seeds.seed() is None

    assert [count(model) for model in kinds] == before == [2, 5, 1, 12, 3]


def test_only_what_is_missing_is_made(session):
    seeds.seed()
    kept = payments()["demo-paid"].id
    with transaction():
        session.execute(update(Payment).where(Payment.reference == "demo-declined").values(reference="mine"))

    seeds.seed()

    session.expire_all()
    found = payments()
    assert found["demo-paid"].id == kept
    assert set(found) == {*STATES, "mine"}


def test_the_demo_user_sees_them_at_once(app, client, in_app, sign_in):
    user = in_app(make_user, email="demo@example.com", name="Demo User")
    in_app(seeds.seed)

    listed = client.get("/v1/payments", headers=sign_in(user)).json["data"]

    assert {payment["reference"]: payment["status"] for payment in listed} == STATES


def test_prices_are_in_the_first_currency_there_is(tmp_path, monkeypatch, app, in_app):
    settings = in_app(lambda: app.extensions["settings"])
    monkeypatch.setitem(app.extensions, "settings", _with(settings, PAYMENTS_CURRENCIES="KWD JPY", tmp_path=tmp_path))
    in_app(seeds.seed)

    assert set(in_app(lambda: db.session.scalars(select(Price.currency)).all())) == {"KWD"}
    assert in_app(lambda: {one.reference: one.status for one in payments().values()}) == STATES


def test_at_stripe_only_the_prices_are_made(tmp_path, monkeypatch, app, in_app):
    stripe = {
        "PAYMENTS_PROVIDER": "stripe",
        "STRIPE_SECRET_KEY": "sk_test_0123456789abcdef",
        "STRIPE_PUBLISHABLE_KEY": "pk_test_0123456789abcdef",
        "STRIPE_WEBHOOK_SECRETS": "whsec_0123456789abcdef",
    }
    settings = in_app(lambda: app.extensions["settings"])
    monkeypatch.setitem(app.extensions, "settings", _with(settings, tmp_path=tmp_path, **stripe))
    in_app(seeds.seed)

    assert (in_app(count, Price), in_app(count, Payment)) == (2, 0)


def _with(settings: Any, *, tmp_path: Any, **env: str) -> Any:
    """Return the settings of the application with other ones for payments."""
    other: Flask = create_app({**ENV, "DATA_DIR": str(tmp_path), **env})
    return replace(settings, payments=other.extensions["settings"].payments)


@pytest.mark.parametrize("status", [PaymentStatus.SUCCEEDED, PaymentStatus.REQUIRES_CAPTURE])
def test_the_provider_has_them_as_we_do(session, status):
    seeds.seed()

    for payment in payments().values():
        if payment.status is status:
            assert current_gateway().retrieve_payment(str(payment.provider_ref)).status is status
