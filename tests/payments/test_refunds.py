"""Refunds by their services: who sees them, how much is given back at most, and whatever the provider does."""

from collections import Counter
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from project.audit import AuditEvent
from project.database import db
from project.errors import Invalid, NotFound
from project.pagination import PageRequest
from project.payments import ledger_check, refunds
from project.payments.failures import InvalidState, PaymentsMisconfigured, ProviderRejected
from project.payments.gateway import current_gateway
from project.payments.gateway_types import InOtherState, Misconfigured, Rejected
from project.payments.models import Payment, Refund, RefundReason, RefundStatus
from project.payments.operations import cancel_payment
from project.payments.refunds import PaymentDisputed, resume_refund
from project.payments.sandbox import clock, disputes
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxDispute, SandboxIntent, SandboxRefund
from project.payments.service import update_from_provider
from project.security import Role
from tests.factories import make_user
from tests.files.uploading import at_once
from tests.payments.paying import (
    Killed,
    advance,
    booked,
    caller,
    get,
    get_refund,
    make_payment,
    owner_of,
    paid,
    refund,
)

pytestmark = pytest.mark.usefixtures("session")

SILENT = [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT]


def only() -> Refund:
    """Return the only refund there is, as it is in the database."""
    return db.session.scalars(select(Refund), execution_options={"populate_existing": True}).one()


def given_back() -> list[tuple[str, int]]:
    """Return what the sandbox has given back."""
    return [(row.wire["status"], row.wire["amount"]) for row in db.session.scalars(select(SandboxRefund)).all()]


def left_at_provider(payment: Payment) -> int:
    """Return what the sandbox would still give back."""
    left = select(SandboxIntent.refundable).where(SandboxIntent.id == payment.provider_ref)
    return db.session.scalar(left) or 0


def amounts(payment: Payment) -> tuple[int, int, int]:
    """Return what was given back, what is under way, and what is left."""
    now = get(payment)
    return now.amount_refunded, now.amount_refund_reserved, now.amount_refundable


def refused(error: pytest.ExceptionInfo[Invalid]) -> tuple[str, str]:
    """Return where a single field was refused, and with which code."""
    (field,) = error.value.errors
    return field.pointer, field.code


# --- Who may not ------------------------------------------------------------------------------------------------------


def test_the_refunds_of_anothers_payment_are_not_found():
    payment = paid()
    refund(payment, 100)

    with pytest.raises(NotFound):
        refunds.list_refunds(payment.id, caller=caller(make_user()), page=PageRequest())


def test_what_never_was_is_not_given_back():
    for amount in (None, 1):
        with pytest.raises(NotFound):
            refunds.create_refund(uuid4(), staff_id=uuid4(), amount=amount)


@pytest.mark.parametrize("amount", [None, 1])
def test_what_was_not_taken_is_not_given_back(gateway, amount):
    waiting, authorised, canceled = make_payment(), paid(manual=True), make_payment()
    cancel_payment(canceled.id, caller=caller(owner_of(canceled)))
    gateway.asked.clear()

    for payment in (waiting, authorised, canceled):
        with pytest.raises(InvalidState):
            refund(payment, amount)
    assert gateway.asked == []
    assert db.session.scalars(select(Refund)).all() == []


@pytest.mark.parametrize("amount", [-1000, -1, 0, 1001, 99_999_999])
def test_nothing_but_a_part_of_it_is_given_back(gateway, amount):
    payment = paid()
    gateway.asked.clear()

    with pytest.raises(Invalid) as error:
        refund(payment, amount)
    assert refused(error) == ("/amount", "refund_exceeds_available")
    assert (gateway.asked, amounts(payment)) == ([], (0, 0, 1000))


# --- Giving back ------------------------------------------------------------------------------------------------------


def test_a_part_is_given_back():
    payment, staff = paid(), make_user(role=Role.STAFF)

    made = refund(payment, 300, staff=staff, reason=RefundReason.DUPLICATE, note="pressed twice")

    assert (made.status, made.amount, made.currency) == (RefundStatus.SUCCEEDED, 300, "USD")
    assert (made.reason, made.note, made.requested_by) == (RefundReason.DUPLICATE, "pressed twice", staff.id)
    assert made.succeeded_at is not None
    assert (amounts(payment), get(payment).refund_status) == ((300, 0, 700), "partial")
    assert booked(payment) == {"capture": 1000, "refund": 300}
    assert given_back() == [("succeeded", 300)]
    audited = select(AuditEvent.action).where(AuditEvent.actor_id == staff.id)
    assert db.session.scalars(audited).all() == ["payment_refunded"]


def test_without_an_amount_all_that_is_left_is_given_back():
    payment = paid()
    refund(payment, 300)

    assert refund(payment).amount == 700
    assert (amounts(payment), get(payment).refund_status) == ((1000, 0, 0), "full")
    with pytest.raises(Invalid):
        refund(payment)


def test_of_what_was_captured_in_part_no_more_is_given_back():
    payment = paid(manual=True)
    current_gateway().capture(str(payment.provider_ref), amount=400, key="by hand")
    update_from_provider(get(payment), actor="user")

    with pytest.raises(Invalid):
        refund(payment, 401)
    assert refund(payment).amount == 400


def test_a_reason_that_the_provider_does_not_know_stays_with_us():
    made = refund(paid(), 100, reason=RefundReason.OTHER)

    (theirs,) = db.session.scalars(select(SandboxRefund)).all()
    assert (made.reason, theirs.wire["reason"]) == (RefundReason.OTHER, None)


def test_refunds_are_listed_for_owner_and_staff():
    owner = make_user()
    payment, other = paid(owner), paid()
    first, second = refund(payment, 100), refund(payment, 200)
    refund(other, 100)

    for reader in (owner, make_user(role=Role.STAFF)):
        assert list(refunds.list_refunds(payment.id, caller=caller(reader), page=PageRequest())) == [second, first]


# --- Never more than was taken ----------------------------------------------------------------------------------------


def test_of_twenty_refunds_of_60_of_100_one_passes(app):
    payment = paid()

    ended = at_once(app, [partial(refund, payment, 600)] * 20)

    assert Counter(type(end) for end in ended) == {Refund: 1, Invalid: 19}, ended
    assert (amounts(payment), given_back()) == ((600, 0, 400), [("succeeded", 600)])
    assert ledger_check.verify() == []


def test_of_many_small_refunds_as_many_pass_as_there_is_money(app):
    payment = paid()

    ended = at_once(app, [partial(refund, payment, 100)] * 16)

    assert Counter(type(end) for end in ended) == {Refund: 10, Invalid: 6}, ended
    assert (amounts(payment), left_at_provider(payment)) == ((1000, 0, 0), 0)
    assert ledger_check.verify() == []


def test_of_many_who_give_back_all_that_is_left_one_does(app):
    payment = paid()

    ended = at_once(app, [partial(refund, payment)] * 12)

    assert Counter(type(end) for end in ended) == {Refund: 1, Invalid: 11}, ended
    assert amounts(payment) == (1000, 0, 0)


def test_what_is_pending_counts(run_jobs):
    payment = paid(method="pm_card_pendingRefund")
    waiting = refund(payment, 600)
    assert (waiting.status, amounts(payment)) == (RefundStatus.PENDING, (0, 600, 400))

    with pytest.raises(Invalid):
        refund(payment, 500)
    advance()
    run_jobs()

    assert get_refund(waiting).status is RefundStatus.SUCCEEDED
    assert amounts(payment) == (600, 0, 400)
    assert booked(payment) == {"capture": 1000, "refund": 600}


def test_a_refund_that_comes_back_can_be_made_again(run_jobs):
    payment = paid(method="pm_card_refundFail")
    made = refund(payment)
    assert (made.status, amounts(payment)) == (RefundStatus.SUCCEEDED, (1000, 0, 0))

    advance()
    run_jobs()

    failed = get_refund(made)
    assert (failed.status, failed.failure_reason) == (RefundStatus.FAILED, "expired_or_canceled_card")
    assert (amounts(payment), get(payment).refund_status) == ((0, 0, 1000), "none")
    assert booked(payment) == {"capture": 1000, "refund": 1000, "refund_reversal": 1000}
    assert refund(payment, 1000).status is RefundStatus.SUCCEEDED
    assert ledger_check.verify() == []


# --- Disputes ---------------------------------------------------------------------------------------------------------


def test_what_is_disputed_is_not_given_back(run_jobs, gateway):
    payment = paid(method="pm_card_createDispute")
    advance()
    run_jobs()
    gateway.asked.clear()

    for amount in (None, 100):
        with pytest.raises(PaymentDisputed):
            refund(payment, amount)
    assert gateway.asked == []


def test_an_inquiry_forbids_nothing(run_jobs):
    payment = paid(method="pm_card_createDisputeInquiry")
    advance()
    run_jobs()

    assert refund(payment, 100).status is RefundStatus.SUCCEEDED


def test_what_was_won_can_be_given_back(run_jobs):
    payment = paid(method="pm_card_createDispute")
    advance()
    disputes.decide(db.session.scalars(select(SandboxDispute.id)).one(), won=True)
    run_jobs()

    assert get(payment).dispute_status == "won"
    assert refund(payment).status is RefundStatus.SUCCEEDED


def test_a_dispute_that_we_have_not_heard_of_refuses_the_refund():
    payment = paid(method="pm_card_createDispute")
    clock.happen(until=get(payment).created_at + clock.HOUR)

    with pytest.raises(InvalidState):
        refund(payment, 100)
    failed = only()
    assert (failed.status, failed.failure_reason, failed.provider_ref) == ("failed", "charge_disputed", None)
    assert amounts(payment) == (0, 0, 1000)


# --- When the provider does not answer, or refuses --------------------------------------------------------------------


@pytest.mark.parametrize("fault", SILENT)
def test_a_refund_without_an_answer_is_gone_on_with(fault):
    payment = paid()
    set_fault(fault, count=1)

    waiting = refund(payment, 300)

    assert (waiting.status, waiting.provider_ref, amounts(payment)) == (RefundStatus.PENDING, None, (0, 300, 700))
    done = resume_refund(waiting.id)
    assert (done.status, amounts(payment)) == (RefundStatus.SUCCEEDED, (300, 0, 700))
    assert given_back() == [("succeeded", 300)]
    assert booked(payment) == {"capture": 1000, "refund": 300}


@pytest.mark.parametrize("after", [False, True], ids=["before-the-answer", "after-it"])
def test_a_refund_whose_process_was_killed_is_gone_on_with(gateway, after):
    payment = paid()
    gateway.fail("create_refund", Killed(), after=after)
    with pytest.raises(Killed):
        refund(payment, 300)

    assert resume_refund(only().id).status is RefundStatus.SUCCEEDED
    assert given_back() == [("succeeded", 300)]
    assert gateway.keys[-2:] == [str(only().id)] * 2


def test_several_who_go_on_at_once_give_back_once(app):
    payment = paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    waiting = refund(payment, 300)

    at_once(app, [partial(resume_refund, waiting.id)] * 8)

    assert resume_refund(waiting.id).status is RefundStatus.SUCCEEDED
    assert (given_back(), amounts(payment)) == ([("succeeded", 300)], (300, 0, 700))
    assert booked(payment) == {"capture": 1000, "refund": 300}


def test_a_refund_that_was_answered_is_told_again(gateway):
    made = refund(paid(), 300)
    gateway.asked.clear()

    assert resume_refund(made.id).status is RefundStatus.SUCCEEDED
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("error", "told", "again"),
    [
        (Rejected("parameter_unknown"), ProviderRejected, ProviderRejected),
        (InOtherState("charge_disputed"), InvalidState, ProviderRejected),
        (Misconfigured("invalid_api_key"), PaymentsMisconfigured, ProviderRejected),
        (Rejected("amount_too_large"), Invalid, Invalid),
    ],
)
def test_what_the_provider_refuses_is_released(gateway, error, told, again):
    payment = paid()
    gateway.fail("create_refund", error)

    with pytest.raises(told):
        refund(payment, 300)
    assert (only().status, only().failure_reason) == (RefundStatus.FAILED, str(error))
    assert amounts(payment) == (0, 0, 1000)
    gateway.asked.clear()
    with pytest.raises(again):
        resume_refund(only().id)
    assert gateway.asked == []


def test_who_gives_back_what_somebody_gave_back_at_the_provider_is_told_so():
    payment = paid()
    by_hand(payment, 600)

    with pytest.raises(Invalid) as error:
        refund(payment, 500)
    assert refused(error) == ("/amount", "refund_exceeds_available")
    assert amounts(payment) == (0, 0, 1000)


def by_hand(payment: Payment, amount: int) -> Any:
    """Give back a part as somebody does in the provider's dashboard."""
    return current_gateway().create_refund(
        str(payment.provider_ref), amount=amount, reason=None, refund_id=uuid4(), key=f"by hand {uuid4()}"
    )


def test_what_somebody_gave_back_at_the_provider_becomes_known(run_jobs):
    payment = paid()
    theirs = by_hand(payment, 600)

    run_jobs()

    adopted = only()
    assert (adopted.provider_ref, adopted.amount, adopted.status) == (theirs.ref, 600, RefundStatus.SUCCEEDED)
    assert (adopted.origin, adopted.requested_by) == ("provider", None)
    assert (amounts(payment), booked(payment)) == ((600, 0, 400), {"capture": 1000, "refund": 600})


def test_a_refund_stays_that_of_one_payment(run_jobs):
    first, second = paid(), paid()
    refund(first, 100)
    refund(second, 200)
    run_jobs()

    sums = select(Refund.payment_id, func.sum(Refund.amount)).group_by(Refund.payment_id)
    found: dict[UUID, Any] = {payment_id: int(amount) for payment_id, amount in db.session.execute(sums)}
    assert found == {first.id: 100, second.id: 200}
