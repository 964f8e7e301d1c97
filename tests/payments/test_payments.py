"""Payments by their services: who sees which, and how one is made and gone on with, whatever the provider does."""

from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from project.database import db, utcnow
from project.errors import Invalid, NotFound, RateLimited
from project.pagination import PageRequest
from project.payments import prices, service
from project.payments.failures import PaymentsMisconfigured, ProviderRejected, ProviderUnavailable
from project.payments.gateway_types import Declined, Failure, InOtherState, Misconfigured, NoSuchObject, Rejected
from project.payments.journal import TimelineEntry
from project.payments.models import Payment, PaymentStatus
from project.payments.operations import cancel_payment
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxIntent
from project.payments.service import PaymentExists, PaymentFinal
from project.security import Role
from tests.factories import make_user
from tests.files.uploading import at_once
from tests.payments.paying import Killed, caller, get, make_payment, make_price, owner_of, paid, pay, sync

pytestmark = pytest.mark.usefixtures("session")

SILENT = [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT]


def only() -> Payment:
    """Return the only payment there is, as it is in the database."""
    return db.session.scalars(select(Payment), execution_options={"populate_existing": True}).one()


def intents() -> list[SandboxIntent]:
    """Return what the sandbox has."""
    return list(db.session.scalars(select(SandboxIntent), execution_options={"populate_existing": True}))


def history(payment: Payment) -> list[tuple[str, str, str | None]]:
    """Return the timeline of a payment: who, what, and what it was then."""
    entries = select(TimelineEntry).where(TimelineEntry.payment_id == payment.id)
    found = db.session.scalars(entries.order_by(TimelineEntry.at, TimelineEntry.id)).all()
    return [(entry.actor, entry.type, entry.data.get("after")) for entry in found]


def lost(fault: Fault = Fault.TIMEOUT_BEFORE, **values) -> Payment:
    """Make a payment of which nobody knows whether it is at the provider."""
    set_fault(fault, count=1)
    with pytest.raises(ProviderUnavailable):
        make_payment(**values)
    return only()


def refused() -> Payment:
    """Make a payment that the provider does not take: less than half a dollar."""
    with pytest.raises(Invalid):
        make_payment(price=make_price(unit_amount=49), reference="order-1")
    return only()


# --- Who may not ------------------------------------------------------------------------------------------------------


def test_the_payment_of_another_is_not_found():
    payment, other = make_payment(), make_user()

    with pytest.raises(NotFound):
        service.read_payment(payment.id, caller=caller(other))
    with pytest.raises(NotFound):
        service.read_payment(payment.id, caller=caller(other), sync=True)
    with pytest.raises(NotFound):
        service.get_payment(payment.id, reader_id=other.id)


@pytest.mark.parametrize("role", list(Role))
def test_the_client_secret_is_told_to_the_owner_alone(role):
    payment = make_payment()

    with pytest.raises(NotFound):
        service.get_client_secret(payment.id, user_id=make_user(role=role).id)


def test_a_payment_that_never_was_is_not_found():
    with pytest.raises(NotFound):
        service.get_payment(uuid4(), reader_id=None)


def test_somebody_elses_payments_are_not_listed():
    user = make_user()
    mine, _theirs = make_payment(user), make_payment()

    listed = service.list_payments(caller_id=user.id, user_id=user.id, page=PageRequest())

    assert list(listed) == [mine]


def test_looking_at_the_provider_is_limited():
    payment = make_payment()
    reader = caller(owner_of(payment))
    service.read_payment(payment.id, caller=reader, sync=True)

    with pytest.raises(RateLimited) as error:
        service.read_payment(payment.id, caller=reader, sync=True)
    assert int(error.value.headers["Retry-After"]) in range(1, 7)


# --- Making -----------------------------------------------------------------------------------------------------------


def test_a_payment_waits_for_its_customer():
    user, price = make_user(), make_price(name="Lessons", unit_amount=1999, currency="EUR")

    payment = make_payment(user, price=price, quantity=2, reference="order-1", metadata={"course": "7"})

    assert payment.status is PaymentStatus.REQUIRES_PAYMENT_METHOD
    assert (payment.amount, payment.currency, payment.quantity, payment.price_id) == (3998, "EUR", 2, price.id)
    assert (payment.user_id, payment.reference, payment.labels) == (user.id, "order-1", {"course": "7"})
    assert (payment.provider, payment.livemode, payment.description) == ("sandbox", False, "Lessons")
    (intent,) = intents()
    assert (intent.id, intent.wire["client_secret"]) == (payment.provider_ref, payment.client_secret)
    assert (intent.wire["amount"], intent.wire["currency"]) == (3998, "eur")
    assert intent.wire["metadata"] == {"payment_id": str(payment.id)}
    assert history(payment) == [
        ("user", "created", None),
        ("user", "status", "requires_payment_method"),
    ]


def test_a_payment_is_made_under_a_key_of_its_own(gateway):
    payment = make_payment()

    assert gateway.keys == [f"{payment.id}:create"]


def test_yen_are_whole():
    payment = paid(price=make_price(currency="JPY", unit_amount=500))

    assert (payment.amount, payment.amount_captured) == (500, 500)
    assert intents()[0].wire["amount_received"] == 500


def test_thousandths_of_a_dinar_are_dinars_thousandths(set_payments):
    set_payments(currencies=["KWD"])

    payment = make_payment(price=make_price(currency="KWD", unit_amount=1500), quantity=2)

    assert (payment.amount, intents()[0].wire["amount"]) == (3000, 3000)


def test_the_client_secret_is_not_kept():
    secret = str(make_payment().client_secret)

    rows = db.session.execute(select(Payment.__table__)).mappings().all()
    assert secret not in str([dict(row) for row in rows])


def test_nothing_is_paid_at_a_price_that_never_was():
    with pytest.raises(NotFound):
        service.create_payment(user_id=make_user().id, price_id=uuid4())
    assert intents() == []


def test_nothing_is_paid_at_a_retired_price():
    price = make_price()
    prices.update_price(price.id, actor_id=uuid4(), active=False)

    with pytest.raises(Invalid):
        make_payment(price=price)
    assert db.session.scalars(select(Payment)).all() == []


def test_what_the_database_refuses_for_another_reason_is_no_double():
    user = make_user()
    make_payment(user)

    for reference in (None, "order-1"):
        with pytest.raises(IntegrityError):
            make_payment(user, reference=reference, quantity=-1)


# --- One payment for each reference -----------------------------------------------------------------------------------


def test_a_reference_has_one_living_payment():
    user = make_user()
    payment = make_payment(user, reference="order-1")

    with pytest.raises(PaymentExists) as error:
        make_payment(user, reference="order-1")
    assert error.value.extra == {"payment_id": str(payment.id)}
    assert len(intents()) == 1


def test_a_reference_that_was_paid_is_not_paid_again():
    user = make_user()
    paid(user, reference="order-1")

    with pytest.raises(PaymentExists):
        make_payment(user, reference="order-1")


def test_a_reference_belongs_to_one_user():
    make_payment(reference="order-1")

    assert make_payment(reference="order-1").status is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_without_a_reference_there_may_be_many():
    user = make_user()

    assert make_payment(user).id != make_payment(user).id


def test_the_living_payment_is_named_and_not_one_that_ended():
    user = make_user()
    ended = make_payment(user, reference="order-1")
    cancel_payment(ended.id, caller=caller(user))
    living = make_payment(user, reference="order-1")

    with pytest.raises(PaymentExists) as error:
        make_payment(user, reference="order-1")
    assert error.value.extra == {"payment_id": str(living.id)}


def test_a_payment_that_failed_leaves_its_reference_free():
    payment = refused()
    user = owner_of(payment)

    assert make_payment(user, reference="order-1").status is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_of_many_at_once_one_is_made(app):
    user, price = make_user(), make_price()
    create = partial(service.create_payment, user_id=user.id, price_id=price.id, reference="order-1")

    ended = at_once(app, [create] * 20)

    made = [payment for payment in ended if isinstance(payment, Payment)]
    doubles = [error for error in ended if isinstance(error, PaymentExists)]
    assert (len(made), len(doubles)) == (1, 19), ended
    assert {error.extra["payment_id"] for error in doubles} == {str(made[0].id)}
    assert [intent.id for intent in intents()] == [made[0].provider_ref]


# --- When the provider does not answer, or refuses --------------------------------------------------------------------


@pytest.mark.parametrize("fault", SILENT)
def test_a_payment_without_an_answer_is_gone_on_with(fault):
    """As the repetition with the same Idempotency-Key does."""
    payment = lost(fault)
    assert (payment.status, payment.provider_ref) == (PaymentStatus.CREATED, None)

    made = service.resume_payment(payment.id)

    assert (made.id, made.status) == (payment.id, PaymentStatus.REQUIRES_PAYMENT_METHOD)
    (intent,) = intents()
    assert (made.provider_ref, made.client_secret) == (intent.id, intent.wire["client_secret"])


@pytest.mark.parametrize("after", [False, True], ids=["before-the-answer", "after-it"])
def test_a_payment_whose_process_was_killed_is_gone_on_with(gateway, after):
    gateway.fail("create_payment", Killed(), after=after)
    with pytest.raises(Killed):
        make_payment()

    made = service.resume_payment(only().id)

    assert [intent.id for intent in intents()] == [made.provider_ref]
    assert gateway.keys == [f"{made.id}:create"] * 2


def test_a_payment_that_was_made_is_told_again_as_it_is_now():
    payment = make_payment()
    secret = payment.client_secret
    pay(payment)

    again = service.resume_payment(payment.id)

    assert (again.status, again.client_secret) == (PaymentStatus.SUCCEEDED, secret)


def test_the_provider_may_still_be_away_when_it_is_gone_on_with():
    payment = lost()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)

    with pytest.raises(ProviderUnavailable):
        service.resume_payment(payment.id)
    assert get(payment).status is PaymentStatus.CREATED


def test_what_the_provider_refuses_has_failed():
    payment = refused()

    assert (payment.status, payment.failure_code) == (PaymentStatus.FAILED, "amount_too_small")
    assert payment.provider_ref is None
    assert history(payment) == [("user", "created", None), ("user", "status", "failed")]


def test_who_repeats_what_was_refused_is_told_the_same():
    with pytest.raises(Invalid) as error:
        service.resume_payment(refused().id)
    assert [(field.pointer, field.code) for field in error.value.errors] == [("/amount", "invalid_amount")]


@pytest.mark.parametrize("error", [Rejected("parameter_unknown"), InOtherState("x"), NoSuchObject("resource_missing")])
def test_a_refusal_that_is_our_fault_fails_the_payment(gateway, error):
    gateway.fail("create_payment", error)

    with pytest.raises(ProviderRejected):
        make_payment()
    assert only().status is PaymentStatus.FAILED
    with pytest.raises(ProviderRejected):
        service.resume_payment(only().id)
    assert gateway.asked == ["create_payment"]


def test_a_long_code_is_cut(gateway):
    gateway.fail("create_payment", Rejected("x" * 100))

    with pytest.raises(ProviderRejected):
        make_payment()
    assert only().failure_code == "x" * 64


def test_a_wrong_key_of_ours_fails_no_payment(gateway):
    """Once the operator has put it right, the repetition is gone on with."""
    gateway.fail("create_payment", Misconfigured("invalid_api_key"))

    with pytest.raises(PaymentsMisconfigured):
        make_payment()
    assert only().status is PaymentStatus.CREATED
    assert service.resume_payment(only().id).status is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_a_declined_creation_fails_the_payment(gateway):
    gateway.fail("create_payment", Declined(Failure("card_declined", "fraudulent", "No.")))

    with pytest.raises(ProviderRejected):
        make_payment()
    assert only().failure_code == "card_declined"


# --- The client secret ------------------------------------------------------------------------------------------------


def test_the_owner_gets_the_client_secret_again():
    payment = make_payment()

    assert service.get_client_secret(payment.id, user_id=owner_of(payment).id) == payment.client_secret


def test_the_client_secret_of_a_lost_payment_makes_it():
    payment = lost()

    secret = service.get_client_secret(payment.id, user_id=owner_of(payment).id)

    assert [intent.wire["client_secret"] for intent in intents()] == [secret]
    assert get(payment).status is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_a_payment_that_is_over_has_no_client_secret():
    payment = paid()

    with pytest.raises(PaymentFinal):
        service.get_client_secret(payment.id, user_id=owner_of(payment).id)


def test_a_payment_that_was_refused_has_no_client_secret(gateway):
    payment = refused()
    gateway.asked.clear()

    with pytest.raises(PaymentFinal):
        service.get_client_secret(payment.id, user_id=owner_of(payment).id)
    assert gateway.asked == []


def test_a_payment_that_is_over_at_the_provider_has_no_client_secret():
    payment = make_payment()
    pay(payment)

    with pytest.raises(PaymentFinal):
        service.get_client_secret(payment.id, user_id=owner_of(payment).id)
    assert get(payment).status is PaymentStatus.SUCCEEDED


def test_fetching_the_client_secret_changes_nothing():
    payment = make_payment()
    pay(payment)

    assert service.fetch_client_secret(payment.id) == payment.client_secret
    assert get(payment).status is PaymentStatus.REQUIRES_PAYMENT_METHOD


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_owner_and_staff_read_a_payment(gateway):
    owner, staff = make_user(), make_user(role=Role.STAFF)
    payment = make_payment(owner)
    gateway.asked.clear()

    assert service.read_payment(payment.id, caller=caller(owner)) is payment
    assert service.read_payment(payment.id, caller=caller(staff)) is payment
    assert gateway.asked == []


def test_with_sync_a_payment_is_what_the_provider_says():
    owner = make_user()
    payment = make_payment(owner)
    pay(payment)
    assert service.read_payment(payment.id, caller=caller(owner)).status is PaymentStatus.REQUIRES_PAYMENT_METHOD

    synced = service.read_payment(payment.id, caller=caller(owner), sync=True)

    assert synced.status is PaymentStatus.SUCCEEDED
    assert history(payment)[-1] == ("user", "status", "succeeded")


def test_the_timeline_says_which_staff_looked():
    staff = make_user(role=Role.STAFF)
    payment = make_payment()
    pay(payment)

    service.read_payment(payment.id, caller=caller(staff), sync=True)

    assert history(payment)[-1] == (f"staff:{staff.id}", "status", "succeeded")


def test_sync_makes_a_lost_payment():
    payment = lost()

    assert sync(payment).status is PaymentStatus.REQUIRES_PAYMENT_METHOD
    assert len(intents()) == 1


def test_sync_tells_that_a_lost_payment_was_refused(gateway):
    payment = lost()
    gateway.fail("create_payment", Rejected("amount_too_small"))

    assert sync(payment).status is PaymentStatus.FAILED


def test_sync_of_what_failed_asks_nobody(gateway):
    payment = refused()
    gateway.asked.clear()

    assert sync(payment).status is PaymentStatus.FAILED
    assert gateway.asked == []


def test_sync_says_when_the_provider_is_away(gateway):
    payment, another = make_payment(), make_payment()
    gateway.fail("retrieve_payment", Misconfigured("invalid_api_key"))

    with pytest.raises(PaymentsMisconfigured):
        sync(payment)
    gateway.fail("retrieve_payment", NoSuchObject("resource_missing"))
    with pytest.raises(ProviderRejected):
        sync(another)


def test_payments_are_filtered():
    user = make_user()
    first = make_payment(user, reference="order-1")
    second = paid(user)
    other = make_payment()
    list_payments = partial(service.list_payments, caller_id=user.id, page=PageRequest())

    assert list(list_payments(user_id=user.id)) == [second, first]
    assert list(list_payments(user_id=None)) == [other, second, first]
    assert list(list_payments(user_id=user.id, status=PaymentStatus.SUCCEEDED)) == [second]
    assert list(list_payments(user_id=user.id, reference="order-1")) == [first]
    assert list(list_payments(user_id=user.id, created_after=first.created_at)) == [second]
    assert list(list_payments(user_id=user.id, created_after=utcnow() + timedelta(hours=1))) == []


# --- Giving up --------------------------------------------------------------------------------------------------------


def test_a_payment_that_never_arrived_is_given_up():
    payment = lost()

    given_up = service.give_up(payment, actor="reconcile")

    assert (given_up.status, given_up.failure_code) == (PaymentStatus.FAILED, "never_arrived")
    assert history(payment)[-1] == ("reconcile", "status", "failed")


def test_a_payment_that_has_arrived_meanwhile_is_not_given_up():
    payment = make_payment()
    before = history(payment)

    assert service.give_up(payment, actor="reconcile").status is PaymentStatus.REQUIRES_PAYMENT_METHOD
    assert history(payment) == before


def test_going_on_and_giving_up_at_once_leave_one_truth(app):
    payment = lost(Fault.TIMEOUT_AFTER)

    at_once(
        app,
        [
            partial(service.resume_payment, payment.id),
            partial(service.give_up, payment, actor="reconcile"),
        ],
    )

    now = get(payment)
    assert now.status in {PaymentStatus.FAILED, PaymentStatus.REQUIRES_PAYMENT_METHOD}
    statuses = [after for _actor, kind, after in history(payment) if kind == "status"]
    assert statuses == [now.status]
    assert db.session.scalar(select(func.count()).select_from(Payment)) == 1
