"""What payments tell Prometheus: what a person has to look at, and what does not settle by itself."""

from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import update

from project.database import transaction, utcnow
from project.payments import gateway, reconcile, waiting
from project.payments.failures import ProviderUnavailable
from project.payments.gateway_types import OutcomeUnknown
from project.payments.models import Operation, Payment
from project.payments.sandbox.faults import Fault, set_fault
from tests.payments import paying, sandboxing


def change(session, payment, **values):
    with transaction():
        session.execute(update(Payment).where(Payment.id == payment.id).values(**values))


def numbers():
    return waiting._count_unsettled(), waiting._count_needing_review()


def total(name):
    return REGISTRY.get_sample_value(f"{name}_total") or 0


def test_payments_that_go_well_are_not_counted(session, time_machine):
    paying.paid()
    paying.make_payment()
    time_machine.move_to(utcnow() + timedelta(minutes=30))
    assert numbers() == (0, 0)


def test_a_payment_that_may_not_have_reached_the_provider_is_counted_after_ten_minutes(session, time_machine):
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    with pytest.raises(ProviderUnavailable):
        paying.make_payment()
    time_machine.move_to(utcnow() + timedelta(minutes=9))
    assert numbers() == (0, 0)
    time_machine.move_to(utcnow() + timedelta(minutes=2))
    assert numbers() == (1, 0)


def test_a_capture_with_an_unknown_outcome_is_counted_after_ten_minutes(session):
    payment = paying.paid(manual=True)
    change(session, payment, pending_operation=Operation.CAPTURE)
    assert numbers() == (0, 0)
    change(session, payment, updated_at=utcnow() - timedelta(minutes=11))
    assert numbers() == (1, 0)


def test_a_payment_to_be_reviewed_is_counted_at_once(session):
    change(session, paying.paid(), needs_review=True)
    assert numbers() == (0, 1)


def test_payments_of_another_provider_are_left_out(session):
    change(session, paying.paid(), needs_review=True, provider="stripe")
    assert numbers() == (0, 0)


def test_what_reconciliation_cannot_cure_is_counted(session):
    paying.paid()
    sandboxing.paid()  # only the provider has it
    before = total("payments_discrepancies")
    reconcile.reconcile_regularly()
    assert total("payments_discrepancies") == before + 1


def test_silences_of_the_provider_are_counted(session, monkeypatch):
    class Silent:
        livemode = False

        def list_payments(self, **_):
            raise OutcomeUnknown("list_payments")

    paying.paid()
    monkeypatch.setattr(gateway, "_gateway", lambda *_: Silent())
    before = total("payments_unanswered")
    reconcile.reconcile_regularly()
    assert total("payments_unanswered") == before + 1
