"""Webhook events in every order, each delivered twice: they say where to look, and so all end in the same."""

import json
from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from project.database import db
from project.payments import inbox, ledger_check
from project.payments.gateway import current_gateway
from project.payments.journal import EventStatus, LedgerEntry, WebhookEvent
from project.payments.models import Payment, PaymentStatus, Refund
from project.payments.sandbox import clock
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxEvent
from project.payments.stripe_objects import event
from tests.payments.paying import get, make_payment, make_price, pay, refund, sync

pytestmark = pytest.mark.usefixtures("session")

HISTORY = [
    "payment_intent.created",
    "payment_intent.requires_action",
    "payment_intent.succeeded",
    "charge.refunded",
    "refund.updated",
]
ORDERS = list(permutations(range(5)))


def drop_events() -> None:
    """Let the sandbox deliver nothing: the tests do, in an order of their own."""
    set_fault(Fault.DROP_WEBHOOK, count=100_000)


def told(payment: Payment) -> list[str]:
    """Return the events of its history that the sandbox has told of a payment."""
    about = SandboxEvent.payload.contains(str(payment.provider_ref))
    rows = db.session.execute(select(SandboxEvent.type, SandboxEvent.payload).where(about)).all()
    payloads = {kind: payload for kind, payload in rows if kind in HISTORY}
    return [payloads[kind] for kind in HISTORY if kind in payloads]


def receive(payloads: Iterable[str]) -> None:
    """Take events as the webhook's route does, each twice."""
    for payload in payloads:
        for _ in range(2):
            inbox.receive(event(json.loads(payload)), payload, provider="sandbox")


def give_back_at_the_provider(payment: Payment) -> None:
    """Give back 3.00 as somebody does in the provider's dashboard."""
    current_gateway().create_refund(
        str(payment.provider_ref), amount=300, reason=None, refund_id=uuid4(), key=f"by hand {payment.id}"
    )


def rows_of(payment: Payment) -> tuple[Any, ...]:
    """Return what a payment, its refunds and the books have become, without what differs between payments."""
    now = get(payment)
    refunds = select(Refund.status, Refund.amount, Refund.currency, Refund.origin).where(
        Refund.payment_id == payment.id
    )
    books = select(LedgerEntry.kind, LedgerEntry.debit_account, LedgerEntry.credit_account, LedgerEntry.amount).where(
        LedgerEntry.payment_id == payment.id
    )
    return (
        (now.status, now.pending_operation, now.needs_review, now.method_brand, now.failure_code),
        (now.amount_captured, now.amount_refunded, now.amount_refund_reserved, now.refund_status),
        tuple(map(tuple, db.session.execute(refunds))),
        tuple(sorted(map(tuple, db.session.execute(books)))),
    )


def check_end(payments: list[Payment], *, origin: str) -> None:
    """Check that all payments have become the same, and that no event waits."""
    entries = (
        ("capture", "assets:provider:sandbox", "income:payments", 1000),
        ("refund", "contra:refunds", "assets:provider:sandbox", 300),
    )
    assert {rows_of(payment) for payment in payments} == {
        (
            (PaymentStatus.SUCCEEDED, None, False, "visa", None),
            (1000, 300, 0, "partial"),
            (("succeeded", 300, "USD", origin),),
            entries,
        )
    }
    assert ledger_check.verify() == []
    states = db.session.scalars(select(WebhookEvent.status)).all()
    assert set(states) == {EventStatus.PROCESSED}
    assert len(states) == len(payments) * 5


@pytest.mark.slow
@pytest.mark.parametrize("first", range(5))
def test_all_orders_of_the_events_end_in_the_same(run_jobs: Callable[[], int], first: int) -> None:
    """Nothing is known but that the payment was made: all the rest comes by events, acted on in the order they came."""
    drop_events()
    price = make_price()
    orders = [order for order in ORDERS if order[0] == first]
    payments = [make_payment(price=price) for _ in orders]
    for payment in payments:
        pay(payment, "pm_card_authenticationRequired")
        pay(payment, "pm_card_pendingRefund")
        give_back_at_the_provider(payment)
    clock.happen(until=get(payments[-1]).created_at + clock.HOUR)

    for payment, order in zip(payments, orders, strict=True):
        payloads = told(payment)
        receive(payloads[place] for place in order)
    run_jobs()

    check_end(payments, origin="provider")


@pytest.mark.parametrize("first", range(5))
def test_events_that_come_while_it_happens_end_in_the_same(run_jobs: Callable[[], int], first: int) -> None:
    """Each comes as soon as what it tells of has happened, or later; what was refunded was refunded by us."""
    drop_events()
    price = make_price()
    payments = []
    for order in [order for order in ORDERS if order[0] == first][::6]:
        payment = make_payment(price=price)
        payments.append(payment)
        acts = iter(happening(payment))
        done = -1
        for place in order:
            for _ in range(done, place):
                next(acts)()
            done = max(done, place)
            receive([told(payment)[place]])
            run_jobs()

    check_end(payments, origin="api")


def happening(payment: Payment) -> list[Callable[[], object]]:
    """Return what happens to a payment, one for each event of its history."""
    return [
        lambda: None,
        lambda: pay(payment, "pm_card_authenticationRequired"),
        lambda: pay(payment, "pm_card_pendingRefund"),
        lambda: refund(sync(payment), 300),
        lambda: clock.happen(until=payment.created_at + clock.HOUR),
    ]
