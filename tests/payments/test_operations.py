"""Captures and cancellations by their services: who may, from which states, once, and whatever the provider answers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from project.audit import AuditEvent
from project.database import db
from project.errors import AppError, Invalid, NotFound
from project.payments import operations, service
from project.payments.failures import InvalidState, PaymentDeclined, PaymentsMisconfigured, ProviderRejected
from project.payments.gateway import current_gateway
from project.payments.gateway_types import (
    Declined,
    Failure,
    InOtherState,
    Misconfigured,
    NoSuchObject,
    OutcomeUnknown,
    Rejected,
)
from project.payments.journal import TimelineEntry
from project.payments.models import Operation, Payment, PaymentStatus
from project.payments.operations import cancel_payment, capture_payment, finish_operation
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxEvent, SandboxIntent
from project.security import Principal, Role
from tests.factories import make_user
from tests.files.uploading import at_once
from tests.payments.paying import (
    Killed,
    booked,
    caller,
    get,
    make_payment,
    owner_of,
    paid,
    pay,
    sync,
)

pytestmark = pytest.mark.usefixtures("session")

SILENT = [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT]
NO = Declined(Failure("card_declined", "insufficient_funds", "There is not enough money on your card."))


def capture(payment: Payment, amount: int | None = None) -> Payment:
    """Capture a payment as somebody of the staff."""
    return capture_payment(payment.id, staff_id=uuid4(), amount=amount)


def cancel(payment: Payment, by: Principal | None = None) -> Payment:
    """Cancel a payment as its owner, or as somebody else."""
    return cancel_payment(payment.id, caller=by or caller(owner_of(payment)))


def staff() -> Principal:
    """Return somebody of the staff."""
    return caller(make_user(role=Role.STAFF))


def authorised(**values: Any) -> Payment:
    """Make a payment of 10.00 that waits to be captured."""
    return paid(manual=True, **values)


def lost() -> Payment:
    """Make a payment of which nobody knows whether it is at the provider."""
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    with pytest.raises(AppError):
        make_payment()
    return db.session.scalars(select(Payment)).one()


def in_state(status: PaymentStatus) -> Payment:
    """Make a payment that is at this."""
    if status is PaymentStatus.CREATED:
        return lost()
    if status is PaymentStatus.FAILED:
        return service.give_up(lost(), actor="reconcile")
    payment = make_payment(manual=status is PaymentStatus.REQUIRES_CAPTURE)
    match status:
        case PaymentStatus.REQUIRES_ACTION:
            pay(payment, "pm_card_authenticationRequired")
        case PaymentStatus.PROCESSING:
            pay(payment, "pm_usBankAccount_processing")
        case PaymentStatus.REQUIRES_CAPTURE | PaymentStatus.SUCCEEDED:
            pay(payment)
        case PaymentStatus.CANCELED:
            cancel(payment)
    found = sync(payment)
    assert found.status is status
    return found


def intent_of(payment: Payment) -> SandboxIntent:
    """Return what the sandbox has of a payment."""
    found = select(SandboxIntent).where(SandboxIntent.id == payment.provider_ref)
    return db.session.scalars(found, execution_options={"populate_existing": True}).one()


def how_it_ended(call: Callable[[], Payment]) -> Payment | AppError:
    """Return what a call returned, or what it was refused with."""
    try:
        return call()
    except AppError as error:
        return error


def emitted(kind: str) -> int:
    """Return how many events of a kind the sandbox has told."""
    return db.session.scalar(select(func.count()).where(SandboxEvent.type == kind)) or 0


def noted(payment: Payment) -> list[tuple[str, str]]:
    """Return who did what, but for the changes of the status."""
    entries = select(TimelineEntry).where(TimelineEntry.payment_id == payment.id, TimelineEntry.type != "status")
    found = db.session.scalars(entries.order_by(TimelineEntry.at, TimelineEntry.id)).all()
    return [(entry.actor, entry.type) for entry in found]


# --- Who may not ------------------------------------------------------------------------------------------------------


def test_the_payment_of_another_is_not_found_to_cancel(gateway):
    payment = make_payment()
    gateway.asked.clear()

    with pytest.raises(NotFound):
        cancel(payment, by=caller(make_user()))
    assert gateway.asked == []


def test_the_owner_does_not_cancel_what_is_authorised(gateway):
    payment = authorised()
    gateway.asked.clear()

    with pytest.raises(InvalidState):
        cancel(payment)
    assert (gateway.asked, get(payment).pending_operation) == ([], None)


def test_what_never_was_is_not_found():
    with pytest.raises(NotFound):
        capture_payment(uuid4(), staff_id=uuid4())
    with pytest.raises(NotFound):
        cancel_payment(uuid4(), caller=staff())
    with pytest.raises(NotFound):
        operations.resume_capture(uuid4())


@pytest.mark.parametrize("status", [PaymentStatus.SUCCEEDED, PaymentStatus.CANCELED, PaymentStatus.FAILED])
def test_what_is_over_stays_so_and_the_provider_is_not_asked(gateway, status):
    payment = in_state(status)
    gateway.asked.clear()

    with pytest.raises(InvalidState):
        capture(payment)
    with pytest.raises(InvalidState):
        capture(payment, 1)
    for by in (None, staff()):
        with pytest.raises(InvalidState):
            cancel(payment, by=by)
    assert (gateway.asked, get(payment).status) == ([], status)


@pytest.mark.parametrize(
    "status",
    [
        PaymentStatus.CREATED,
        PaymentStatus.REQUIRES_PAYMENT_METHOD,
        PaymentStatus.REQUIRES_ACTION,
        PaymentStatus.PROCESSING,
    ],
)
def test_only_what_is_authorised_is_captured(gateway, status):
    payment = in_state(status)
    gateway.asked.clear()

    with pytest.raises(InvalidState):
        capture(payment)
    assert gateway.asked == []


# --- Capturing --------------------------------------------------------------------------------------------------------


def test_what_was_authorised_is_captured():
    payment = authorised()
    assert (payment.status, payment.amount_capturable) == (PaymentStatus.REQUIRES_CAPTURE, 1000)
    assert payment.authorized_at is not None

    captured = capture(payment)

    assert (captured.status, captured.amount_captured, captured.amount_capturable) == (PaymentStatus.SUCCEEDED, 1000, 0)
    assert (captured.pending_operation, captured.pending_amount) == (None, None)
    assert booked(payment) == {"capture": 1000}


@pytest.mark.parametrize("amount", [1, 400, 1000])
def test_a_part_is_captured_and_the_rest_is_released(amount):
    captured = capture(authorised(), amount)

    assert (captured.amount_captured, captured.amount_capturable, captured.amount_refundable) == (amount, 0, amount)
    assert intent_of(captured).wire["amount_received"] == amount


@pytest.mark.parametrize("amount", [-1, 0, 1001, 99_999_999])
def test_no_more_is_captured_than_was_authorised(gateway, amount):
    payment = authorised()
    gateway.asked.clear()

    with pytest.raises(Invalid) as error:
        capture(payment, amount)
    assert [(field.pointer, field.code) for field in error.value.errors] == [("/amount", "amount_exceeds_capturable")]
    assert (gateway.asked, get(payment).pending_operation) == ([], None)


def test_what_was_captured_is_not_captured_again():
    payment = authorised()
    capture(payment, 400)

    with pytest.raises(InvalidState):
        capture(payment, 600)
    assert booked(payment) == {"capture": 400}


def test_captures_and_cancellations_by_staff_are_audited():
    first, second, somebody = authorised(), authorised(), staff()

    capture_payment(first.id, staff_id=somebody.id)
    cancel_payment(second.id, caller=somebody, reason="sold out")

    events = select(AuditEvent.action, AuditEvent.target_id).where(AuditEvent.actor_id == somebody.id)
    assert db.session.execute(events.order_by(AuditEvent.id)).all() == [
        ("payment_captured", first.id),
        ("payment_canceled", second.id),
    ]
    assert noted(second)[-1] == (f"staff:{somebody.id}", "cancel")


def test_of_a_hundred_captures_at_once_one_is_made(app, gateway):
    payment = authorised()

    def five_times() -> list[type]:
        return [type(how_it_ended(partial(capture, payment))) for _ in range(5)]

    ended = at_once(app, [five_times] * 20)

    kinds = [kind for five in ended if isinstance(five, list) for kind in five]
    assert Counter(kinds) == {Payment: 1, InvalidState: 99}, ended
    assert gateway.asked.count("capture") == 1
    assert emitted("payment_intent.succeeded") == 1
    assert booked(payment) == {"capture": 1000}


def test_of_captures_and_cancellations_at_once_one_is_done(app, gateway):
    payment, somebody = authorised(), staff()

    ended = at_once(app, [partial(capture, payment), partial(cancel, payment, somebody)] * 10)

    assert Counter(type(end) for end in ended) == {Payment: 1, InvalidState: 19}
    now = get(payment)
    assert now.status in {PaymentStatus.SUCCEEDED, PaymentStatus.CANCELED}
    assert intent_of(payment).wire["status"] == now.status
    assert gateway.asked.count("capture") + gateway.asked.count("cancel") == 1


# --- Cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", operations.CANCELABLE_BY_OWNER)
def test_the_owner_cancels_what_was_not_paid(status):
    payment = in_state(status)

    canceled = cancel(payment)

    assert (canceled.status, canceled.pending_operation) == (PaymentStatus.CANCELED, None)
    assert canceled.canceled_at is not None
    assert intent_of(canceled).wire["status"] == "canceled"
    assert noted(payment)[-1] == ("user", "cancel")


@pytest.mark.parametrize("status", operations.CANCELABLE)
def test_staff_cancel_whatever_was_not_taken(status):
    payment = in_state(status)

    canceled = cancel(payment, by=staff())

    assert (canceled.status, canceled.amount_capturable) == (PaymentStatus.CANCELED, 0)
    assert booked(payment) == {}


def test_what_the_provider_never_took_cannot_be_canceled(gateway):
    payment = lost()
    gateway.fail("create_payment", Rejected("amount_too_small"))

    with pytest.raises(InvalidState):
        cancel(payment)
    assert (get(payment).status, get(payment).pending_operation) == (PaymentStatus.FAILED, None)


def test_what_may_not_be_at_the_provider_waits_to_be_canceled():
    payment = lost()
    set_fault(Fault.TIMEOUT_AFTER, count=1)

    waiting = cancel(payment)

    assert (waiting.status, waiting.pending_operation) == (PaymentStatus.CREATED, Operation.CANCEL)
    assert operations.resume_cancel(payment.id).status is PaymentStatus.CANCELED
    assert emitted("payment_intent.created") == 1


def test_a_customer_who_pays_while_it_is_canceled_has_paid():
    payment = make_payment()
    pay(payment)

    with pytest.raises(InvalidState):
        cancel(payment)
    now = get(payment)
    assert (now.status, now.pending_operation) == (PaymentStatus.SUCCEEDED, None)
    assert booked(payment) == {"capture": 1000}


def test_after_a_refused_cancellation_another_is_asked_for(gateway):
    """Under another key, since the provider repeats its refusal under the same."""
    payment = in_state(PaymentStatus.PROCESSING)
    gateway.fail("cancel", InOtherState("payment_intent_unexpected_state"))
    with pytest.raises(InvalidState):
        cancel(payment)
    assert (get(payment).status, get(payment).pending_operation) == (PaymentStatus.PROCESSING, None)
    assert noted(payment)[-1] == ("system", "cancel_refused")

    assert cancel(payment).status is PaymentStatus.CANCELED
    assert len(set(gateway.keys[-2:])) == 2


# --- When the provider does not answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", SILENT)
def test_a_capture_without_an_answer_is_gone_on_with(gateway, fault):
    payment = authorised()
    set_fault(fault, count=1)

    waiting = capture(payment, 400)

    assert (waiting.status, waiting.pending_operation) == (PaymentStatus.REQUIRES_CAPTURE, Operation.CAPTURE)
    assert (waiting.pending_amount, booked(payment)) == (400, {})
    done = operations.resume_capture(payment.id)
    assert (done.status, done.amount_captured, done.pending_operation) == (PaymentStatus.SUCCEEDED, 400, None)
    assert (booked(payment), emitted("payment_intent.succeeded")) == ({"capture": 400}, 1)
    assert len(set(gateway.keys[-2:])) == 1


@pytest.mark.parametrize("fault", SILENT)
def test_a_cancellation_without_an_answer_is_gone_on_with(gateway, fault):
    payment = make_payment()
    set_fault(fault, count=1)

    waiting = cancel(payment)

    assert (waiting.status, waiting.pending_operation) == (
        PaymentStatus.REQUIRES_PAYMENT_METHOD,
        Operation.CANCEL,
    )
    assert operations.resume_cancel(payment.id).status is PaymentStatus.CANCELED
    assert emitted("payment_intent.canceled") == 1
    assert len(set(gateway.keys[-2:])) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before-the-answer", "after-it"])
def test_a_capture_whose_process_was_killed_is_gone_on_with(gateway, after):
    payment = authorised()
    gateway.fail("capture", Killed(), after=after)
    with pytest.raises(Killed):
        capture(payment, 400)

    done = operations.resume_capture(payment.id)

    assert (done.status, done.amount_captured) == (PaymentStatus.SUCCEEDED, 400)
    assert (booked(payment), emitted("payment_intent.succeeded")) == ({"capture": 400}, 1)


def test_while_one_is_under_way_nothing_else_is_asked_for(gateway):
    payment = authorised()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    capture(payment)
    gateway.asked.clear()

    with pytest.raises(InvalidState):
        capture(payment)
    with pytest.raises(InvalidState):
        cancel(payment, by=staff())
    assert gateway.asked == []


def test_an_event_that_is_faster_than_the_answer_ends_the_operation():
    payment = authorised()
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    capture(payment)

    now = sync(payment)

    assert (now.status, now.pending_operation, now.pending_amount) == (PaymentStatus.SUCCEEDED, None, None)
    assert operations.resume_capture(payment.id).status is PaymentStatus.SUCCEEDED


def test_what_was_done_is_told_again():
    captured, canceled = capture(authorised()), cancel(make_payment())

    assert operations.resume_capture(captured.id).status is PaymentStatus.SUCCEEDED
    assert operations.resume_cancel(canceled.id).status is PaymentStatus.CANCELED


def test_what_cannot_be_done_any_more_is_not_gone_on_with(gateway):
    captured, canceled = capture(authorised()), cancel(make_payment())
    gateway.asked.clear()

    with pytest.raises(InvalidState):
        operations.resume_cancel(captured.id)
    with pytest.raises(InvalidState):
        operations.resume_capture(canceled.id)
    assert gateway.asked == []


def test_who_finishes_what_was_finished_changes_nothing(gateway):
    payment = authorised()
    gateway.asked.clear()

    assert finish_operation(payment, actor="reconcile").status is PaymentStatus.REQUIRES_CAPTURE
    assert gateway.asked == []


def test_several_who_finish_at_once_capture_once(app):
    payment = authorised()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    capture(payment, 400)

    at_once(app, [partial(operations.resume_capture, payment.id)] * 8)

    done = operations.resume_capture(payment.id)
    assert (done.status, done.amount_captured) == (PaymentStatus.SUCCEEDED, 400)
    assert (booked(payment), emitted("payment_intent.succeeded")) == ({"capture": 400}, 1)


# --- When the provider refuses ----------------------------------------------------------------------------------------


def test_a_capture_that_is_declined_is_given_up(gateway):
    payment = authorised()
    gateway.fail("capture", NO)

    with pytest.raises(PaymentDeclined) as error:
        capture(payment)
    assert error.value.extra == {"decline_code": "insufficient_funds"}
    now = get(payment)
    assert (now.status, now.pending_operation, now.pending_amount) == (PaymentStatus.REQUIRES_CAPTURE, None, None)
    assert noted(payment)[-1] == ("system", "capture_refused")


def test_after_a_declined_capture_the_same_is_asked_for_anew(gateway):
    payment = authorised()
    gateway.fail("capture", NO)
    with pytest.raises(PaymentDeclined):
        capture(payment)

    assert capture(payment).status is PaymentStatus.SUCCEEDED
    assert len(set(gateway.keys[-2:])) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Rejected("parameter_unknown"), ProviderRejected),
        (NoSuchObject("resource_missing"), ProviderRejected),
        (Misconfigured("invalid_api_key"), PaymentsMisconfigured),
    ],
)
def test_what_is_refused_is_given_up(gateway, error, told):
    payment = authorised()
    gateway.fail("capture", error)
    gateway.fail("cancel", error)

    with pytest.raises(told):
        capture(payment)
    with pytest.raises(told):
        cancel(payment, by=staff())
    assert get(payment).pending_operation is None
    with pytest.raises(InvalidState):
        operations.resume_capture(payment.id)


def test_who_captures_more_than_the_provider_has_is_told_so(gateway):
    payment = authorised()
    gateway.fail("capture", Rejected("amount_too_large"))

    with pytest.raises(Invalid) as error:
        capture(payment)
    assert [field.code for field in error.value.errors] == ["amount_exceeds_capturable"]


def test_what_the_provider_has_released_is_not_captured():
    """An authorisation lapses after some days."""
    payment = authorised()
    current_gateway().cancel(str(payment.provider_ref), key="by hand")

    with pytest.raises(InvalidState):
        capture(payment)
    now = get(payment)
    assert (now.status, now.pending_operation, now.amount_capturable) == (PaymentStatus.CANCELED, None, 0)


def test_what_somebody_has_done_at_the_provider_is_done():
    first, second = authorised(), make_payment()
    current_gateway().capture(str(first.provider_ref), amount=300, key="by hand")
    current_gateway().cancel(str(second.provider_ref), key="by hand too")

    assert (capture(first).status, get(first).amount_captured) == (PaymentStatus.SUCCEEDED, 300)
    assert cancel(second).status is PaymentStatus.CANCELED


def test_a_refusal_that_cannot_be_looked_into_stays_open(gateway):
    payment = authorised()
    gateway.fail("capture", InOtherState("payment_intent_unexpected_state"))
    gateway.fail("retrieve_payment", OutcomeUnknown("Timeout"))

    assert capture(payment).pending_operation is Operation.CAPTURE
    assert operations.resume_capture(payment.id).status is PaymentStatus.SUCCEEDED


def test_a_capture_that_the_provider_still_works_on_waits(gateway):
    """As with methods of payment that are captured slowly."""
    payment = authorised()
    working = replace(current_gateway().retrieve_payment(str(payment.provider_ref)), status=PaymentStatus.PROCESSING)
    gateway.answer("capture", working)
    waiting = capture(payment)
    assert (waiting.status, waiting.pending_operation) == (PaymentStatus.PROCESSING, Operation.CAPTURE)

    gateway.fail("capture", InOtherState("payment_intent_unexpected_state"))
    gateway.answer("retrieve_payment", working)
    again = operations.resume_capture(payment.id)
    assert (again.status, again.pending_operation) == (PaymentStatus.PROCESSING, Operation.CAPTURE)
