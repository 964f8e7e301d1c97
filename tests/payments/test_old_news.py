"""A slow worker writes down what it saw at the provider before others did: nothing goes back to what it was."""

import pytest
from sqlalchemy import select

from project.payments.gateway import current_gateway
from project.payments.models import Dispute, DisputeState, PaymentStatus
from project.payments.sandbox import disputes
from project.payments.sandbox.models import SandboxDispute
from project.payments.snapshots import apply_dispute, apply_payment
from tests.payments import paying


def test_a_payment_that_is_authorised_does_not_wait_for_its_customer_again(session):
    payment = paying.make_payment(manual=True)
    old = current_gateway().retrieve_payment(str(payment.provider_ref))
    paying.pay(payment)
    assert paying.sync(payment).status is PaymentStatus.REQUIRES_CAPTURE

    again = apply_payment(payment.id, old, actor="webhook:late")

    assert (again.status, again.amount_capturable) == (PaymentStatus.REQUIRES_CAPTURE, payment.amount)


@pytest.mark.parametrize("status", [PaymentStatus.SUCCEEDED, PaymentStatus.CANCELED])
def test_a_payment_that_is_over_is_not_authorised_again(session, status):
    payment = paying.paid(manual=True)
    old = current_gateway().retrieve_payment(str(payment.provider_ref))
    if status is PaymentStatus.SUCCEEDED:
        current_gateway().capture(old.ref, amount=None, key="capture")
    else:
        current_gateway().cancel(old.ref, key="cancel")
    paying.sync(payment)

    assert apply_payment(payment.id, old, actor="webhook:late").status is status


@pytest.mark.parametrize(
    ("method", "status", "state"),
    [
        ("pm_card_createDispute", "won", DisputeState.WON),
        ("pm_card_createDisputeInquiry", "warning_closed", DisputeState.NONE),
    ],
)
def test_a_dispute_that_is_closed_does_not_open_again(session, run_jobs, method, status, state):
    payment = paying.paid(method=method)
    paying.advance()
    run_jobs()
    ref = session.scalars(select(SandboxDispute.id)).one()
    old = current_gateway().retrieve_dispute(ref)
    disputes.decide(ref, won=True)
    apply_dispute(current_gateway().retrieve_dispute(ref), actor="webhook:first")

    apply_dispute(old, actor="webhook:late")

    assert session.scalars(select(Dispute)).one().status == status
    assert paying.get(payment).dispute_status is state
