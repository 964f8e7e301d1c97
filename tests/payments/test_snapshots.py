"""What our rows become by what a provider says, in any order and any number of times."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count, permutations
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import NoResultFound

from project.database import db, transaction, utcnow
from project.pagination import PageRequest
from project.payments import disputes, ledger_check, service, timeline
from project.payments.gateway import current_gateway
from project.payments.gateway_types import (
    DisputeSnapshot,
    Failure,
    Method,
    OutcomeUnknown,
    PaymentSnapshot,
    RefundSnapshot,
)
from project.payments.journal import LedgerEntry, TimelineEntry
from project.payments.models import (
    Dispute,
    DisputeState,
    Operation,
    Payment,
    PaymentStatus,
    Refund,
    RefundOrigin,
    RefundStatus,
)
from project.payments.operations import cancel_payment, capture_payment
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.snapshots import apply_dispute, apply_payment, apply_refund, release_refund
from tests.factories import make_user
from tests.files.uploading import at_once
from tests.payments.paying import (
    Killed,
    booked,
    caller,
    get,
    get_refund,
    make_payment,
    make_price,
    owner_of,
    paid,
    refund,
)

pytestmark = pytest.mark.usefixtures("session")

SUCCEEDED, CANCELED, FAILED = PaymentStatus.SUCCEEDED, PaymentStatus.CANCELED, PaymentStatus.FAILED
WAITING = PaymentStatus.REQUIRES_PAYMENT_METHOD
_numbers = count(1)


def told(payment: Payment, status: PaymentStatus, **said: Any) -> PaymentSnapshot:
    """Return what a provider says of a payment that is at this."""
    received = payment.amount if status is SUCCEEDED else 0
    capturable = payment.amount if status is PaymentStatus.REQUIRES_CAPTURE else 0
    present = current_gateway().retrieve_payment(str(payment.provider_ref))
    amounts = {"amount_received": received, "amount_capturable": capturable}
    return replace(present, **{"status": status, "method": None, "failure": None, **amounts, **said})


def apply(payment: Payment, status: PaymentStatus, **said: Any) -> Payment:
    """Let a payment be what a provider says."""
    return apply_payment(payment.id, told(payment, status, **said), actor="reconcile")


def of_refund(payment: Payment, status: RefundStatus, amount: int = 300, **said: Any) -> RefundSnapshot:
    """Return what a provider says of a refund that nobody here knows."""
    values = {"ref": f"re_{next(_numbers)}", "refund_id": None, "failure_reason": None, **said}
    return RefundSnapshot(
        payment_ref=str(payment.provider_ref), status=status, amount=amount, currency=payment.currency, **values
    )


def of_dispute(payment: Payment, status: str, **said: Any) -> DisputeSnapshot:
    """Return what a provider says of a dispute."""
    values = {"ref": f"dp_{payment.id}", "withdrawn": 0, "reinstated": 0, "fee": 0, "amount": payment.amount, **said}
    return DisputeSnapshot(
        payment_ref=str(payment.provider_ref),
        status=status,
        reason="fraudulent",
        currency=payment.currency,
        livemode=False,
        evidence_due_by=utcnow(),
        **values,
    )


def canceled(payment: Payment) -> Payment:
    """Cancel a payment as its owner."""
    return cancel_payment(payment.id, caller=caller(owner_of(payment)))


def amounts(payment: Payment) -> tuple[int, int, int]:
    """Return what was given back, what is under way, and what is left."""
    now = get(payment)
    return now.amount_refunded, now.amount_refund_reserved, now.amount_refundable


def noted(payment: Payment, kind: str) -> list[dict[str, Any]]:
    """Return what the timeline says of one kind of thing."""
    entries = select(TimelineEntry.data).where(TimelineEntry.payment_id == payment.id, TimelineEntry.type == kind)
    return list(db.session.scalars(entries.order_by(TimelineEntry.at, TimelineEntry.id)))


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{"amount": 999}, {"currency": "EUR"}], ids=["amount", "currency"])
def test_another_amount_changes_nothing_and_is_held_for_review(said, caplog):
    payment = make_payment()

    apply(payment, SUCCEEDED, **said)
    now = apply(payment, SUCCEEDED, **said)

    assert (now.status, now.amount_captured, now.receipt_number) == (WAITING, 0, None)
    assert (now.needs_review, now.review_reason, booked(payment)) == (True, "amount_differs", {})
    assert noted(payment, "review") == [{"reason": "amount_differs"}]
    assert [record.message for record in caplog.records].count("payment_needs_review") == 1


def test_another_payment_of_the_provider_is_not_taken_for_ours():
    payment = make_payment()

    now = apply(payment, SUCCEEDED, ref="pi_another")

    assert (now.status, now.provider_ref) == (WAITING, payment.provider_ref)
    assert (now.review_reason, booked(payment)) == ("another_at_provider", {})


def test_of_a_payment_that_never_was_nothing_is_taken():
    with pytest.raises(NoResultFound):
        apply_payment(uuid4(), told(make_payment(), SUCCEEDED), actor="reconcile")


@pytest.mark.parametrize("status", [status for status in PaymentStatus if status is not SUCCEEDED])
def test_nothing_leads_out_of_success(status, caplog):
    payment = paid()
    before = (payment.version, payment.receipt_number, payment.succeeded_at)

    now = apply(payment, status)

    assert now.status is SUCCEEDED
    assert (now.version, now.receipt_number, now.succeeded_at) == before
    assert "stale_snapshot" in [record.message for record in caplog.records]


@pytest.mark.parametrize("status", [WAITING, PaymentStatus.REQUIRES_CAPTURE, PaymentStatus.PROCESSING])
def test_what_was_canceled_does_not_live_again(status):
    payment = canceled(make_payment())

    assert apply(payment, status).status is CANCELED
    assert get(payment).needs_review is False


def test_what_is_authorised_waits_for_no_customer_again(caplog):
    payment = paid(manual=True)

    for old in (WAITING, PaymentStatus.REQUIRES_ACTION):
        assert apply(payment, old).status is PaymentStatus.REQUIRES_CAPTURE
    assert get(payment).amount_capturable == 1000
    assert "stale_snapshot" in [record.message for record in caplog.records]


def test_a_capture_may_take_its_time_and_fail():
    payment = paid(manual=True)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    capture_payment(payment.id, staff_id=uuid4())

    working = apply(payment, PaymentStatus.PROCESSING)
    assert (working.status, working.pending_operation) == (PaymentStatus.PROCESSING, Operation.CAPTURE)
    assert apply(payment, WAITING, failure=Failure("card_declined", None, "No.")).status is WAITING


# --- What is taken over -----------------------------------------------------------------------------------------------


def test_news_of_an_authorisation():
    now = apply(make_payment(manual=True), PaymentStatus.REQUIRES_CAPTURE, method=Method("card", "visa", "4242"))

    assert (now.amount_capturable, now.amount_captured) == (1000, 0)
    assert (now.method_type, now.method_brand, now.method_last4) == ("card", "visa", "4242")
    first = now.authorized_at
    assert first is not None
    assert apply(now, PaymentStatus.REQUIRES_CAPTURE).authorized_at == first
    assert get(now).method == {"type": "card", "brand": "visa", "last4": "4242"}


def test_news_of_a_decline_and_of_the_next_attempt():
    payment = make_payment()

    declined = apply(payment, WAITING, failure=Failure("card_declined", "insufficient_funds", "No money."))
    assert declined.failure == {
        "code": "card_declined",
        "decline_code": "insufficient_funds",
        "message": "No money.",
    }
    assert apply(payment, PaymentStatus.PROCESSING).failure is None


def test_the_same_news_again_change_nothing():
    payment = make_payment()
    apply(payment, PaymentStatus.PROCESSING)
    version = get(payment).version

    apply(payment, PaymentStatus.PROCESSING)

    assert get(payment).version == version
    assert len(noted(payment, "status")) == 2


def test_success_is_booked_receipted_and_mailed_once(run_jobs, outbox):
    payment = make_payment()

    for _ in range(3):
        apply(payment, SUCCEEDED)
    run_jobs()

    now = get(payment)
    assert (now.amount_captured, now.amount_capturable) == (1000, 0)
    assert now.receipt_number == f"R-{utcnow().year}-000001"
    assert booked(payment) == {"capture": 1000}
    assert len([mail for mail in outbox if mail.to == owner_of(payment).email]) == 1
    assert noted(payment, "status")[-1] == {"before": "requires_payment_method", "after": "succeeded"}


def test_of_many_that_bring_the_same_success_one_acts(app, run_jobs, outbox):
    payment = make_payment()
    snapshot = told(payment, SUCCEEDED)

    at_once(app, [partial(apply_payment, payment.id, snapshot, actor=f"webhook:{n}") for n in range(20)])
    run_jobs()

    assert (get(payment).status, booked(payment)) == (SUCCEEDED, {"capture": 1000})
    assert len(outbox) == 1
    assert len(noted(payment, "status")) == 2


def test_receipt_numbers_have_no_gaps(app):
    payments = [make_payment() for _ in range(12)]
    calls = [partial(apply_payment, payment.id, told(payment, SUCCEEDED), actor="user") for payment in payments]

    at_once(app, calls)

    numbers = sorted(str(get(payment).receipt_number) for payment in payments)
    assert numbers == [f"R-{utcnow().year}-{n:06}" for n in range(1, 13)]


def test_who_dies_in_the_middle_leaves_nothing_behind():
    payment = make_payment()
    snapshot = told(payment, SUCCEEDED)

    def die() -> None:
        with transaction():
            apply_payment(payment.id, snapshot, actor="user")
            raise Killed

    with pytest.raises(Killed):
        die()
    assert (get(payment).status, booked(payment)) == (WAITING, {})
    assert str(apply_payment(payment.id, snapshot, actor="user").receipt_number).endswith("-000001")


@pytest.mark.parametrize("status", [SUCCEEDED, CANCELED])
def test_the_end_ends_what_was_under_way(status):
    payment = paid(manual=True)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    assert capture_payment(payment.id, staff_id=uuid4(), amount=400).pending_operation is Operation.CAPTURE

    now = apply(payment, status)

    assert (now.status, now.pending_operation, now.pending_amount) == (status, None, None)


# --- Money that arrives late ------------------------------------------------------------------------------------------


def test_money_that_arrives_for_a_canceled_payment_is_booked_and_held_for_review():
    payment = canceled(make_payment(reference="order-1"))

    now = apply(payment, SUCCEEDED)

    assert (now.status, now.needs_review, now.review_reason) == (SUCCEEDED, True, "succeeded_late")
    assert (booked(payment), now.reference) == ({"capture": 1000}, "order-1")
    assert ledger_check.verify() == []


def test_money_that_arrives_for_a_failed_payment_is_booked_and_held_for_review(gateway):
    gateway.fail("create_payment", Killed(), after=True)
    with pytest.raises(Killed):
        make_payment()
    lost = service.give_up(db.session.scalars(select(Payment)).one(), actor="reconcile")
    (snapshot,) = list(current_gateway().list_payments(since=lost.created_at.replace(microsecond=0)))

    now = apply_payment(lost.id, replace(snapshot, status=SUCCEEDED, amount_received=1000), actor="reconcile")

    assert (now.status, now.provider_ref, now.review_reason) == (SUCCEEDED, snapshot.ref, "succeeded_late")
    assert booked(now) == {"capture": 1000}


def test_money_that_arrives_late_leaves_the_reference_to_the_payment_that_was_made_instead():
    user = make_user()
    first = canceled(make_payment(user, reference="order-1"))
    second = make_payment(user, reference="order-1")

    now = apply(first, SUCCEEDED)

    assert (now.status, now.reference, booked(first)) == (SUCCEEDED, None, {"capture": 1000})
    assert noted(first, "reference_left") == [{"reference": "order-1"}]
    assert get(second).reference == "order-1"


# --- Refunds ----------------------------------------------------------------------------------------------------------


def test_a_refund_of_nothing_of_ours_is_not_taken():
    snapshot = replace(of_refund(paid(), RefundStatus.SUCCEEDED), payment_ref="pi_another")

    assert apply_refund(snapshot, actor="webhook:1") is None
    assert db.session.scalars(select(Refund)).all() == []


@pytest.mark.parametrize("end", [RefundStatus.FAILED, RefundStatus.CANCELED])
def test_what_a_refund_holds_is_released_when_it_ends(end):
    payment = paid()
    snapshot = of_refund(payment, RefundStatus.PENDING)
    made = apply_refund(snapshot, actor="webhook:1")
    assert made is not None
    assert (made.origin, amounts(payment)) == (RefundOrigin.PROVIDER, (0, 300, 700))

    apply_refund(replace(snapshot, status=RefundStatus.REQUIRES_ACTION), actor="webhook:2")
    assert amounts(payment) == (0, 300, 700)
    apply_refund(replace(snapshot, status=end, failure_reason="declined"), actor="webhook:3")

    assert (get_refund(made).status, get_refund(made).failure_reason) == (end, "declined")
    assert (amounts(payment), booked(payment)) == ((0, 0, 1000), {"capture": 1000})


def test_a_refund_that_failed_before_we_heard_of_it_moves_nothing():
    """Though its amount is not left any more."""
    payment = paid()
    refund(payment)

    made = apply_refund(of_refund(payment, RefundStatus.FAILED, failure_reason="unknown"), actor="webhook:1")

    assert made is not None
    assert (made.status, made.failure_reason) == (RefundStatus.FAILED, "unknown")
    assert amounts(payment) == (1000, 0, 0)
    assert ledger_check.verify() == []


def test_old_news_of_a_refund_change_nothing():
    payment = paid()
    snapshot = of_refund(payment, RefundStatus.SUCCEEDED)
    made = apply_refund(snapshot, actor="webhook:1")
    assert made is not None

    for old in (RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION, RefundStatus.SUCCEEDED):
        apply_refund(replace(snapshot, status=old), actor="webhook:2")
    assert (get_refund(made).status, amounts(payment)) == (RefundStatus.SUCCEEDED, (300, 0, 700))

    apply_refund(replace(snapshot, status=RefundStatus.FAILED), actor="webhook:3")
    for old in (RefundStatus.PENDING, RefundStatus.SUCCEEDED, RefundStatus.CANCELED):
        apply_refund(replace(snapshot, status=old), actor="webhook:4")
    assert (get_refund(made).status, amounts(payment)) == (RefundStatus.FAILED, (0, 0, 1000))
    assert booked(payment) == {"capture": 1000, "refund": 300, "refund_reversal": 300}


def test_of_many_that_bring_the_same_refund_one_acts(app):
    payment = paid()
    snapshot = of_refund(payment, RefundStatus.SUCCEEDED)

    ended = at_once(app, [partial(apply_refund, snapshot, actor=f"webhook:{n}") for n in range(16)])

    assert {type(end) for end in ended} == {Refund}, ended
    assert db.session.scalar(select(func.count()).select_from(Refund)) == 1
    assert (amounts(payment), booked(payment)) == ((300, 0, 700), {"capture": 1000, "refund": 300})


def test_a_refund_of_what_is_not_known_to_be_paid_waits():
    payment = make_payment()
    snapshot = of_refund(payment, RefundStatus.SUCCEEDED)

    with pytest.raises(OutcomeUnknown):
        apply_refund(snapshot, actor="webhook:1")
    apply(payment, SUCCEEDED)
    apply_refund(snapshot, actor="webhook:1")

    assert amounts(payment) == (300, 0, 700)


def test_a_refund_at_the_provider_waits_for_ours_to_be_refused():
    payment = paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    ours = refund(payment, 800)
    theirs = of_refund(payment, RefundStatus.SUCCEEDED, 500)

    with pytest.raises(OutcomeUnknown):
        apply_refund(theirs, actor="webhook:1")
    release_refund(ours.id, reason="amount_too_large", actor="reconcile")
    apply_refund(theirs, actor="webhook:1")

    assert (get_refund(ours).status, amounts(payment)) == (RefundStatus.FAILED, (500, 0, 500))


def test_a_refund_is_released_once():
    payment = paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    ours = refund(payment, 800)

    for _ in range(3):
        assert release_refund(ours.id, reason="x" * 100, actor="reconcile").failure_reason == "x" * 64
    assert amounts(payment) == (0, 0, 1000)


def test_a_refund_that_the_provider_has_is_not_released():
    given, waiting = paid(), paid(method="pm_card_pendingRefund")
    for payment in (given, waiting):
        made = refund(payment, 300)
        before = (made.status, amounts(payment))

        assert release_refund(made.id, reason="never_arrived", actor="reconcile").status is before[0]
        assert amounts(payment) == before[1]


def test_a_refund_that_arrives_after_it_was_released_counts():
    payment = paid()
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    ours = refund(payment, 300)
    release_refund(ours.id, reason="never_arrived", actor="reconcile")
    (theirs,) = list(current_gateway().list_refunds(str(payment.provider_ref)))

    apply_refund(theirs, actor="webhook:1")

    assert get_refund(ours).status is RefundStatus.SUCCEEDED
    assert (amounts(payment), booked(payment)) == ((300, 0, 700), {"capture": 1000, "refund": 300})


def test_releasing_and_applying_at_once_end_in_one_truth(app):
    payment = paid()
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    ours = refund(payment, 300)
    (theirs,) = list(current_gateway().list_refunds(str(payment.provider_ref)))
    calls: list[Callable[[], Refund | None]] = [
        partial(release_refund, ours.id, reason="never_arrived", actor="reconcile"),
        partial(apply_refund, theirs, actor="webhook:1"),
    ]

    ended = at_once(app, calls * 6)

    assert {type(end) for end in ended} == {Refund}, ended
    assert (get_refund(ours).status, amounts(payment)) == (RefundStatus.SUCCEEDED, (300, 0, 700))
    assert booked(payment) == {"capture": 1000, "refund": 300}


# --- Disputes ---------------------------------------------------------------------------------------------------------


def test_a_dispute_of_nothing_of_ours_is_not_taken():
    snapshot = replace(of_dispute(paid(), "needs_response"), payment_ref="pi_another")

    assert apply_dispute(snapshot, actor="webhook:1") is None


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("warning_needs_response", DisputeState.INQUIRY),
        ("warning_under_review", DisputeState.INQUIRY),
        ("warning_closed", DisputeState.NONE),
        ("prevented", DisputeState.NONE),
    ],
)
def test_an_inquiry_moves_no_money(status, shown):
    payment = paid()

    dispute = apply_dispute(of_dispute(payment, status), actor="webhook:1")

    assert dispute is not None
    assert (get(payment).dispute_status, dispute.funds_withdrawn) == (shown, False)
    assert (dispute.closed_at is not None) == (shown is DisputeState.NONE)
    assert (booked(payment), get(payment).status) == ({"capture": 1000}, SUCCEEDED)


@pytest.mark.parametrize("end", ["won", "lost"])
def test_a_dispute_holds_money_until_it_is_decided(end):
    payment = paid()
    taken = {"withdrawn": 1000, "fee": 1500}
    for status in ("needs_response", "needs_response", "under_review"):
        apply_dispute(of_dispute(payment, status, **taken), actor="webhook:1")
    assert get(payment).dispute_status is DisputeState.OPEN
    assert booked(payment) == {"capture": 1000, "dispute_hold": 1000, "dispute_fee": 1500}
    assert ledger_check.verify() == []

    decided = of_dispute(payment, end, **taken, reinstated=1000 if end == "won" else 0)
    for _ in range(2):
        apply_dispute(decided, actor="webhook:2")

    assert get(payment).dispute_status == end
    assert booked(payment) == {
        "capture": 1000,
        "dispute_hold": 1000,
        "dispute_fee": 1500,
        f"dispute_{end}": 1000,
    }
    assert ledger_check.verify() == []
    assert [entry["status"] for entry in noted(payment, "dispute")] == ["needs_response", "under_review", end]


def test_a_dispute_that_we_hear_of_at_its_end_is_booked_whole():
    payment = paid()

    apply_dispute(of_dispute(payment, "lost", withdrawn=1000), actor="webhook:1")

    assert booked(payment) == {"capture": 1000, "dispute_hold": 1000, "dispute_lost": 1000}
    assert ledger_check.verify() == []


def test_old_news_do_not_open_a_decided_dispute():
    payment = paid()
    apply_dispute(of_dispute(payment, "won", withdrawn=1000, reinstated=1000), actor="webhook:1")

    dispute = apply_dispute(of_dispute(payment, "needs_response", withdrawn=1000), actor="webhook:2")

    assert dispute is not None
    assert (dispute.status, get(payment).dispute_status) == ("won", DisputeState.WON)


def test_an_inquiry_may_become_a_dispute():
    payment = paid()
    apply_dispute(of_dispute(payment, "warning_closed"), actor="webhook:1")

    apply_dispute(of_dispute(payment, "needs_response", withdrawn=1000), actor="webhook:2")

    assert get(payment).dispute_status is DisputeState.OPEN
    assert booked(payment) == {"capture": 1000, "dispute_hold": 1000}


def test_of_several_disputes_the_gravest_is_shown():
    payment = paid()
    shown = []
    for ref, status in [
        ("dp_1", "warning_needs_response"),
        ("dp_2", "won"),
        ("dp_3", "lost"),
        ("dp_4", "needs_response"),
        ("dp_5", "warning_closed"),
        ("dp_4", "won"),
    ]:
        apply_dispute(of_dispute(payment, status, ref=ref, amount=100), actor="webhook:1")
        shown.append(get(payment).dispute_status.value)

    assert shown == ["inquiry", "won", "lost", "open", "open", "lost"]


def test_of_many_that_bring_the_same_dispute_one_acts(app):
    payment = paid()
    snapshot = of_dispute(payment, "needs_response", withdrawn=1000, fee=1500)

    ended = at_once(app, [partial(apply_dispute, snapshot, actor=f"webhook:{n}") for n in range(16)])

    assert {type(end) for end in ended} == {Dispute}, ended
    assert booked(payment) == {"capture": 1000, "dispute_hold": 1000, "dispute_fee": 1500}


def test_disputes_are_listed_for_staff():
    first, second = paid(), paid()
    one = apply_dispute(of_dispute(first, "needs_response"), actor="webhook:1")
    two = apply_dispute(of_dispute(second, "warning_closed"), actor="webhook:1")
    list_disputes = partial(disputes.list_disputes, caller_id=uuid4(), page=PageRequest())

    assert list(list_disputes()) == [two, one]
    assert list(list_disputes(payment_id=first.id)) == [one]


def test_the_timeline_tells_of_one_payment_the_latest_first():
    payment, _other = paid(), paid()

    told_of = timeline.list_entries(payment.id, caller_id=uuid4(), page=PageRequest())

    assert [entry.type for entry in told_of] == ["status", "status", "created"]
    assert {entry.payment_id for entry in told_of} == {payment.id}


# --- Snapshots that are late ------------------------------------------------------------------------------------------


def test_snapshots_that_come_in_any_order_end_in_one_truth():
    """Each was true when it was taken; who was slow brings it when it is not any more, and those refused come again."""
    ends = set()
    price = make_price()
    for order in permutations(range(5)):
        payment = make_payment(price=price)
        pending = of_refund(payment, RefundStatus.PENDING)
        paid_one = told(payment, SUCCEEDED)
        asked = replace(paid_one, status=PaymentStatus.REQUIRES_ACTION, amount_received=0)
        worked_on = replace(asked, status=PaymentStatus.PROCESSING)
        news = [
            partial(apply_payment, payment.id, asked, actor="webhook:3"),
            partial(apply_payment, payment.id, worked_on, actor="webhook:4"),
            partial(apply_payment, payment.id, paid_one, actor="webhook:5"),
            partial(apply_refund, pending, actor="webhook:1"),
            partial(apply_refund, replace(pending, status=RefundStatus.SUCCEEDED), actor="webhook:2"),
        ]
        bring([news[place] for place in order])
        ends.add((get(payment).status, amounts(payment), tuple(sorted(booked(payment).items()))))

    assert ends == {(SUCCEEDED, (300, 0, 700), (("capture", 1000), ("refund", 300)))}
    assert db.session.scalar(select(func.count()).select_from(LedgerEntry)) == 240
    assert ledger_check.verify() == []


def bring(news: list[Any]) -> None:
    """Bring each twice, and those that could not be applied yet again after the others."""
    while news:
        refused = []
        for one in news:
            try:
                one()
                one()
            except OutcomeUnknown:
                refused.append(one)
        assert len(refused) < len(news)
        news = refused
