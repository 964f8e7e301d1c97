"""The sandbox gateway through the real SDK: what each test payment method does, and what Stripe would allow."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from project.database import db, utcnow
from project.errors import Invalid, Unauthorized
from project.payments.gateway import current_gateway
from project.payments.gateway_types import Declined, InOtherState, Method, NoSuchObject, Rejected
from project.payments.models import PaymentStatus, RefundReason, RefundStatus
from project.payments.sandbox import browser, clock, disputes
from project.payments.sandbox.methods import METHODS, Behaviour
from project.payments.sandbox.models import SandboxDispute, SandboxIntent
from tests.files.uploading import at_once
from tests.payments.sandboxing import Listener, authenticate, confirm, give_back, look, make_payment, paid

pytestmark = pytest.mark.usefixtures("session")

DECLINES = {
    "pm_card_visa_chargeDeclined": ("card_declined", "generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": ("card_declined", "insufficient_funds"),
    "pm_card_visa_chargeDeclinedLostCard": ("card_declined", "lost_card"),
    "pm_card_visa_chargeDeclinedStolenCard": ("card_declined", "stolen_card"),
    "pm_card_visa_chargeDeclinedVelocityLimitExceeded": ("card_declined", "card_velocity_exceeded"),
    "pm_card_chargeDeclinedExpiredCard": ("expired_card", None),
    "pm_card_chargeDeclinedIncorrectCvc": ("incorrect_cvc", None),
    "pm_card_chargeDeclinedProcessingError": ("processing_error", None),
    "pm_card_radarBlock": ("card_declined", "fraudulent"),
}
AT_ONCE = sorted(name for name, method in METHODS.items() if method.behaviour is Behaviour.SUCCEED)
BY_BANK = ["pm_usBankAccount_success", "pm_usBankAccount_insufficientFunds", "pm_usBankAccount_processing"]


def advance(by: timedelta = clock.HOUR) -> list[str]:
    """Let happen what will, and return the kinds of events that came of all so far."""
    listener = Listener()
    clock.advance(listener, by=by)
    return listener.types


# --- Payment methods --------------------------------------------------------------------------------------------------


def test_every_method_of_the_table_is_there():
    assert set(METHODS) == {*AT_ONCE, *DECLINES, *BY_BANK, "pm_card_authenticationRequired"}
    assert {"pm_card_visa", "pm_card_mastercard", "pm_card_amex"} < set(AT_ONCE)
    assert {"pm_card_createDispute", "pm_card_pendingRefund", "pm_card_refundFail"} < set(AT_ONCE)


def test_a_new_payment_waits_for_the_customer():
    payment = make_payment(amount=1999, currency="EUR")

    assert (payment.status, payment.amount, payment.currency) == (PaymentStatus.REQUIRES_PAYMENT_METHOD, 1999, "EUR")
    assert (payment.amount_capturable, payment.amount_received, payment.livemode) == (0, 0, False)
    assert (payment.method, payment.failure) == (None, None)
    assert payment.ref.startswith("pi_sbx_")
    assert (payment.client_secret or "").startswith(f"{payment.ref}_secret_")
    assert look(payment) == payment


@pytest.mark.parametrize("method", AT_ONCE)
def test_a_card_pays_at_once(method):
    payment = make_payment()

    assert confirm(payment, method).status == "succeeded"
    assert look(payment).status is PaymentStatus.SUCCEEDED
    assert (look(payment).amount_received, look(payment).amount_capturable) == (1000, 0)


@pytest.mark.parametrize("method", AT_ONCE)
def test_a_card_is_authorised_where_it_is_to_be_captured(method):
    payment = make_payment(manual=True)

    assert confirm(payment, method).status == "requires_capture"
    assert look(payment).status is PaymentStatus.REQUIRES_CAPTURE
    assert (look(payment).amount_received, look(payment).amount_capturable) == (0, 1000)


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("pm_card_visa", Method("card", "visa", "4242")),
        ("pm_card_mastercard", Method("card", "mastercard", "4444")),
        ("pm_card_amex", Method("card", "amex", "8431")),
        ("pm_usBankAccount_success", Method("us_bank_account", None, "6789")),
    ],
)
def test_what_was_paid_with_is_shown(method, shown):
    assert paid(method).method == shown


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize(("method", "codes"), DECLINES.items(), ids=DECLINES)
def test_a_decline_is_told_and_the_customer_may_try_again(method, codes, manual):
    payment = make_payment(manual=manual)

    with pytest.raises(Declined) as caught:
        confirm(payment, method)

    declined = look(payment)
    assert (caught.value.failure.code, caught.value.failure.decline_code) == codes
    assert declined.failure == caught.value.failure
    assert (declined.status, declined.amount_received) == (PaymentStatus.REQUIRES_PAYMENT_METHOD, 0)
    confirm(payment)
    assert look(payment).status is (PaymentStatus.REQUIRES_CAPTURE if manual else PaymentStatus.SUCCEEDED)
    assert look(payment).failure is None


@pytest.mark.parametrize("method", ["pm_card_visa_chargeDeclinedLostCard", "pm_card_visa_chargeDeclinedStolenCard"])
def test_a_thief_is_not_told_that_the_card_is_known_as_stolen(method):
    with pytest.raises(Declined) as caught:
        confirm(make_payment(), method)

    assert caught.value.failure.message == "The payment was declined. Try again, or pay in another way."


@pytest.mark.parametrize("method", ["pm_card_chargeDeclined", "pm_card_visa_chargeDeclinedExpiredCard"])
def test_declines_are_known_under_both_spellings(method):
    with pytest.raises(Declined):
        confirm(make_payment(), method)


@pytest.mark.parametrize("method", ["", "pm_card_nothing", "pm_card_visa_"])
def test_an_unknown_method_changes_nothing(method):
    payment = make_payment()

    with pytest.raises(Invalid) as caught:
        confirm(payment, method)

    assert [error.code for error in caught.value.errors] == ["invalid_payment_method"]
    assert look(payment) == payment


# --- Approval by the customer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manual", "status"), [(False, "succeeded"), (True, "requires_capture")], ids=["automatic", "manual"]
)
def test_a_payment_that_the_customer_approves_is_paid(manual, status):
    payment = make_payment(manual=manual)

    assert confirm(payment, "pm_card_authenticationRequired").status == "requires_action"
    assert look(payment).status is PaymentStatus.REQUIRES_ACTION
    assert authenticate(payment).status == status
    assert look(payment).status == status


def test_a_payment_that_the_customer_does_not_approve_can_be_tried_again():
    payment = make_payment()
    confirm(payment, "pm_card_authenticationRequired")

    assert authenticate(payment, "fail").status == "requires_payment_method"

    failure = look(payment).failure
    assert failure is not None
    assert failure.code == "payment_intent_authentication_failure"
    assert confirm(payment).status == "succeeded"


def test_the_browser_is_sent_to_the_page_for_approval_and_back():
    payment = make_payment()
    outcome = confirm(payment, "pm_card_authenticationRequired", return_url="https://shop.example/done?order=7")

    assert outcome.next_action is not None
    redirect = outcome.next_action["redirect_to_url"]
    page = urlsplit(redirect["url"])
    assert page.path == f"/v1/sandbox/payment-intents/{payment.ref}/authenticate"
    assert parse_qs(page.query) == {"client_secret": [payment.client_secret]}
    assert redirect["return_url"] == "https://shop.example/done?order=7"
    back = urlsplit(authenticate(payment, "fail").return_to or "")
    assert (back.netloc, back.path) == ("shop.example", "/done")
    assert parse_qs(back.query) == {
        "order": ["7"],
        "payment_intent": [payment.ref],
        "payment_intent_client_secret": [payment.client_secret],
        "redirect_status": ["failed"],
    }


def test_the_page_for_approval_shows_what_is_to_be_paid():
    payment = make_payment(amount=700)
    confirm(payment, "pm_card_authenticationRequired")

    approval = browser.get_approval(payment.ref, client_secret=payment.client_secret or "")
    assert approval.payment == look(payment)
    assert (approval.description, approval.is_asked, approval.return_to) == ("Lessons", True, None)
    with pytest.raises(Unauthorized):
        browser.get_approval(payment.ref, client_secret=payment.ref)


def test_without_an_address_to_return_to_the_browser_stays():
    payment = make_payment()
    confirm(payment, "pm_card_authenticationRequired")

    assert authenticate(payment).return_to is None


def test_while_approval_is_asked_another_method_may_be_taken():
    payment = make_payment()
    confirm(payment, "pm_card_authenticationRequired")

    assert confirm(payment, "pm_card_visa").status == "succeeded"
    with pytest.raises(InOtherState):
        authenticate(payment)


@pytest.mark.parametrize("secret", ["", "pi_sbx_1_secret_x", "é"])
def test_only_who_has_the_client_secret_pays(secret):
    payment = make_payment()
    wrong = type(payment)(**{**vars(payment), "client_secret": secret})

    for pay in (confirm, authenticate):
        with pytest.raises(Unauthorized) as caught:
            pay(wrong)
        assert caught.value.code == "invalid_client_secret"
    assert look(payment) == payment


def test_a_payment_that_does_not_exist_is_refused_as_a_wrong_secret_is():
    payment = make_payment()
    nothing = type(payment)(**{**vars(payment), "ref": "pi_sbx_nothing"})

    with pytest.raises(Unauthorized):
        confirm(nothing)


def test_what_is_paid_is_not_paid_again():
    payment = paid()

    with pytest.raises(InOtherState):
        confirm(payment)
    with pytest.raises(InOtherState):
        authenticate(payment)


# --- Banks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [
        ("pm_usBankAccount_success", PaymentStatus.SUCCEEDED, None),
        ("pm_usBankAccount_insufficientFunds", PaymentStatus.REQUIRES_PAYMENT_METHOD, "insufficient_funds"),
        ("pm_usBankAccount_processing", PaymentStatus.PROCESSING, None),
    ],
)
def test_a_bank_answers_later(method, status, code):
    payment = paid(method)

    assert (payment.status, payment.amount_received) == (PaymentStatus.PROCESSING, 0)
    clock.happen()
    assert look(payment).status is PaymentStatus.PROCESSING
    advance()
    later = look(payment)
    assert (later.status, later.failure.code if later.failure else None) == (status, code)
    assert later.amount_received == (1000 if status is PaymentStatus.SUCCEEDED else 0)


def test_a_bank_answers_after_some_seconds_by_itself(time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    payment = paid("pm_usBankAccount_success")

    time_machine.shift(timedelta(seconds=4))
    assert clock.happen() == 0
    time_machine.shift(timedelta(seconds=1))
    assert clock.happen() == 1
    assert look(payment).status is PaymentStatus.SUCCEEDED
    assert clock.happen() == 0


@pytest.mark.parametrize("method", BY_BANK)
def test_what_a_bank_has_not_answered_can_be_canceled(method):
    payment = paid(method)

    assert current_gateway().cancel(payment.ref, key="k").status is PaymentStatus.CANCELED
    advance()
    assert look(payment).status is PaymentStatus.CANCELED


def test_a_bank_cannot_authorise_first():
    payment = make_payment(manual=True)

    with pytest.raises(Invalid):
        confirm(payment, "pm_usBankAccount_success")
    assert look(payment) == payment


# --- Capture and cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "captured"), [(None, 1000), (1000, 1000), (1, 1), (400, 400)])
def test_a_capture_takes_all_or_a_part_and_releases_the_rest(amount, captured):
    payment = paid(manual=True)

    found = current_gateway().capture(payment.ref, amount=amount, key="k")

    assert (found.status, found.amount_received, found.amount_capturable) == (PaymentStatus.SUCCEEDED, captured, 0)
    assert (found.amount, look(payment)) == (1000, found)
    with pytest.raises(InOtherState):
        current_gateway().capture(payment.ref, amount=1, key="k2")


@pytest.mark.parametrize(
    ("amount", "code"), [(1001, "amount_too_large"), (0, "invalid_request_error"), (-5, "invalid_request_error")]
)
def test_a_capture_takes_no_more_than_was_authorised(amount, code):
    payment = paid(manual=True)

    with pytest.raises(Rejected) as caught:
        current_gateway().capture(payment.ref, amount=amount, key="k")

    assert caught.value.code == code
    assert look(payment) == payment


def test_what_was_not_authorised_is_not_captured():
    for payment in (make_payment(manual=True), paid(), paid("pm_usBankAccount_processing")):
        with pytest.raises(InOtherState):
            current_gateway().capture(payment.ref, amount=None, key=f"{payment.ref}:capture")
        assert look(payment) == payment


@pytest.mark.parametrize("manual", [False, True], ids=["new", "authorised"])
def test_what_is_not_paid_can_be_canceled_once(manual):
    payment = paid(manual=True) if manual else make_payment()

    found = current_gateway().cancel(payment.ref, key="k")

    assert (found.status, found.amount_capturable) == (PaymentStatus.CANCELED, 0)
    with pytest.raises(InOtherState):
        current_gateway().cancel(payment.ref, key="k2")
    with pytest.raises(InOtherState):
        confirm(payment)
    with pytest.raises(InOtherState):
        current_gateway().capture(payment.ref, amount=None, key="k3")


def test_what_waits_for_approval_can_be_canceled():
    payment = make_payment()
    confirm(payment, "pm_card_authenticationRequired")

    assert current_gateway().cancel(payment.ref, key="k").status is PaymentStatus.CANCELED
    with pytest.raises(InOtherState):
        authenticate(payment)


def test_what_is_paid_cannot_be_canceled():
    payment = paid()

    with pytest.raises(InOtherState):
        current_gateway().cancel(payment.ref, key="k")
    assert look(payment) == payment


# --- Amounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "currency"), [(500, "JPY"), (50, "JPY"), (50, "USD"), (30, "GBP"), (5120, "KWD")])
def test_an_amount_is_taken_as_it_is(amount, currency):
    payment = paid(amount=amount, currency=currency)

    assert (payment.amount, payment.amount_received, payment.currency) == (amount, amount, currency)
    assert give_back(payment, amount).amount == amount


@pytest.mark.parametrize(
    ("amount", "currency", "code"),
    [
        (49, "USD", "amount_too_small"),
        (29, "GBP", "amount_too_small"),
        (49, "JPY", "amount_too_small"),
        (0, "USD", "amount_too_small"),
        (-100, "USD", "amount_too_small"),
        (100_000_000, "USD", "amount_too_large"),
        (5124, "KWD", "invalid_request_error"),
        (1000, "ISK", "invalid_currency"),
        (1000, "XXX", "invalid_currency"),
    ],
)
def test_an_amount_that_stripe_does_not_take_is_refused(amount, currency, code):
    with pytest.raises(Rejected) as caught:
        make_payment(amount=amount, currency=currency)

    assert caught.value.code == code
    assert db.session.query(SandboxIntent).count() == 0


# --- Refunds ----------------------------------------------------------------------------------------------------------


def test_money_is_given_back_in_parts_and_never_more_than_was_captured():
    payment = make_payment(manual=True)
    confirm(payment)
    current_gateway().capture(payment.ref, amount=700, key="c")

    assert give_back(payment, 300).status is RefundStatus.SUCCEEDED
    with pytest.raises(Rejected) as caught:
        give_back(payment, 401)
    assert caught.value.code == "amount_too_large"
    assert give_back(payment, 400).ref.startswith("re_sbx_")
    with pytest.raises(InOtherState):
        give_back(payment, 1)
    assert [refund.amount for refund in current_gateway().list_refunds(payment.ref)] == [400, 300]


@pytest.mark.parametrize("amount", [0, -1])
def test_nothing_or_less_is_not_given_back(amount):
    payment = paid()

    with pytest.raises(Rejected):
        give_back(payment, amount)
    assert list(current_gateway().list_refunds(payment.ref)) == []


@pytest.mark.parametrize("reason", [*RefundReason, None])
def test_every_reason_of_ours_is_taken(reason):
    payment, refund_id = paid(), uuid4()

    refund = current_gateway().create_refund(payment.ref, amount=1, reason=reason, refund_id=refund_id, key="k")

    assert (refund.refund_id, refund.payment_ref, refund.currency) == (refund_id, payment.ref, "USD")
    assert current_gateway().retrieve_refund(refund.ref) == refund


def test_what_was_not_paid_is_not_given_back():
    for payment in (make_payment(), paid(manual=True), paid("pm_usBankAccount_processing")):
        with pytest.raises(InOtherState):
            give_back(payment, 1)


def test_a_refund_may_stay_pending_for_a_while():
    payment = paid("pm_card_pendingRefund")
    refund = give_back(payment, 600)

    assert refund.status is RefundStatus.PENDING
    with pytest.raises(Rejected):
        give_back(payment, 401)
    advance()
    assert current_gateway().retrieve_refund(refund.ref).status is RefundStatus.SUCCEEDED


def test_a_refund_that_fails_later_gives_its_amount_free_again():
    payment = paid("pm_card_refundFail")
    refund = give_back(payment, 1000)

    assert refund.status is RefundStatus.SUCCEEDED
    advance()
    failed = current_gateway().retrieve_refund(refund.ref)
    assert (failed.status, failed.failure_reason) == (RefundStatus.FAILED, "expired_or_canceled_card")
    assert give_back(payment, 1000).status is RefundStatus.SUCCEEDED


# --- Disputes ---------------------------------------------------------------------------------------------------------


def disputed(method: str = "pm_card_createDispute") -> str:
    paid(method)
    advance()
    [ref] = db.session.scalars(db.select(SandboxDispute.id))
    return str(ref)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("pm_card_createDispute", "fraudulent"),
        ("pm_card_createDisputeProductNotReceived", "product_not_received"),
    ],
)
def test_a_dispute_takes_the_money_and_a_fee(method, reason):
    payment = paid(method)
    advance()
    [ref] = db.session.scalars(db.select(SandboxDispute.id))

    found = current_gateway().retrieve_dispute(ref)

    assert (found.ref, found.payment_ref, found.status, found.reason) == (ref, payment.ref, "needs_response", reason)
    assert (found.amount, found.withdrawn, found.reinstated, found.fee) == (1000, 1000, 0, 1500)
    assert found.evidence_due_by is not None
    with pytest.raises(InOtherState):
        give_back(payment, 1)


def test_an_inquiry_takes_nothing():
    payment = paid("pm_card_createDisputeInquiry")
    types = advance()
    [ref] = db.session.scalars(db.select(SandboxDispute.id))

    found = current_gateway().retrieve_dispute(ref)

    assert (found.status, found.withdrawn, found.fee) == ("warning_needs_response", 0, 0)
    assert "charge.dispute.funds_withdrawn" not in types
    assert give_back(payment, 1).status is RefundStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("method", "status"),
    [("pm_card_createDispute", "lost"), ("pm_card_createDisputeInquiry", "warning_closed")],
)
def test_a_dispute_that_nobody_answers_ends_after_a_week(method, status):
    ref = disputed(method)

    assert current_gateway().retrieve_dispute(ref).status.endswith("needs_response")
    types = advance(timedelta(days=7, seconds=1))

    assert current_gateway().retrieve_dispute(ref).status == status
    assert types == ["charge.dispute.closed"]
    assert current_gateway().retrieve_dispute(ref).reinstated == 0


@pytest.mark.parametrize("won", [True, False], ids=["won", "lost"])
def test_only_money_that_came_back_can_be_refunded(won):
    payment = paid("pm_card_createDispute")
    advance()
    [ref] = db.session.scalars(db.select(SandboxDispute.id))

    disputes.decide(ref, won=won)

    if won:
        assert give_back(payment, 1000).status is RefundStatus.SUCCEEDED
    else:
        with pytest.raises(InOtherState):
            give_back(payment, 1000)


def test_a_dispute_that_is_won_gives_the_money_back():
    ref = disputed()

    disputes.decide(ref, won=True)
    disputes.decide(ref, won=False)  # too late

    found = current_gateway().retrieve_dispute(ref)
    assert (found.status, found.withdrawn, found.reinstated) == ("won", 1000, 1000)
    assert advance() == ["charge.dispute.closed", "charge.dispute.funds_reinstated"]


def test_what_was_given_back_is_not_disputed():
    payment = paid("pm_card_createDispute")
    give_back(payment, 1000)

    advance()

    assert db.session.query(SandboxDispute).count() == 0


def test_what_does_not_exist_is_told_as_such():
    gateway = current_gateway()
    for ask in (gateway.retrieve_payment, gateway.retrieve_refund, gateway.retrieve_dispute):
        with pytest.raises(NoSuchObject):
            ask("xx_sbx_nothing")
    with pytest.raises(NoSuchObject):
        gateway.cancel("pi_sbx_nothing", key="k")
    with pytest.raises(NoSuchObject):
        list(gateway.list_refunds("pi_sbx_nothing"))


# --- At once ----------------------------------------------------------------------------------------------------------


def outcomes(ended: Sequence[object]) -> Counter[str]:
    return Counter(type(one).__name__ for one in ended)


def test_of_20_refunds_of_60_out_of_100_at_once_exactly_one_is_made(app):
    payment = paid(amount=100)

    ended = at_once(app, [lambda: give_back(payment, 60)] * 20)

    assert outcomes(ended) == {"RefundSnapshot": 1, "Rejected": 19}
    assert [refund.amount for refund in current_gateway().list_refunds(payment.ref)] == [60]


def test_of_a_capture_and_a_cancel_at_once_one_is_done(app):
    for number in range(5):
        payment = paid(manual=True)
        calls = [
            lambda ref=payment.ref, n=number: current_gateway().capture(ref, amount=None, key=f"capture {n}"),
            lambda ref=payment.ref, n=number: current_gateway().cancel(ref, key=f"cancel {n}"),
        ]
        ended = at_once(app, calls)

        assert outcomes(ended) == {"PaymentSnapshot": 1, "InOtherState": 1}
        assert look(payment) == next(one for one in ended if not isinstance(one, Exception))


def test_of_ten_confirmations_at_once_one_pays(app):
    payment = make_payment()

    ended = at_once(app, [lambda: confirm(payment)] * 10)

    assert outcomes(ended) == {"Outcome": 1, "InOtherState": 9}
    assert advance().count("payment_intent.succeeded") == 1


def test_what_is_due_happens_once_whoever_looks(app):
    payment = paid("pm_usBankAccount_success")
    until = utcnow() + clock.HOUR

    ended = at_once(app, [lambda: clock.happen(until=until)] * 8)

    assert sorted(map(str, ended)) == ["0"] * 7 + ["1"]
    assert look(payment).status is PaymentStatus.SUCCEEDED
