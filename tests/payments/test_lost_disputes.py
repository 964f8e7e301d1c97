"""Disputes of which no webhook tells are found when the provider's books are compared with ours."""

from datetime import timedelta

import pytest

from project.database import utcnow
from project.payments import ledger_check
from project.payments.comparing import compare
from project.payments.models import DisputeState
from project.payments.sandbox import clock
from project.payments.sandbox.faults import Fault, set_fault
from tests.payments.paying import booked, get, paid

DAYS = timedelta(days=2)


@pytest.fixture
def disputed(session):
    """A payment that was disputed while all webhooks were lost."""
    payment = paid(method="pm_card_createDispute")
    set_fault(Fault.DROP_WEBHOOK, count=1000)
    clock.happen(until=utcnow() + clock.HOUR)
    return payment


def found(**options):
    return compare(since=DAYS, settled=timedelta(), **options)


def test_a_new_dispute_is_mirrored_with_what_it_took(disputed):
    assert get(disputed).dispute_status is DisputeState.NONE
    [told] = found().repaired
    assert told.startswith("Dispute ")
    assert get(disputed).dispute_status is DisputeState.OPEN
    assert booked(disputed) == {"capture": 1000, "dispute_hold": 1000, "dispute_fee": 1500}
    assert (found().repaired, list(ledger_check.verify())) == ([], [])


def test_a_trial_run_only_tells(disputed):
    assert [told.partition(" ")[0] for told in found(dry_run=True).left] == ["Dispute"]
    assert get(disputed).dispute_status is DisputeState.NONE


def test_the_end_of_an_old_dispute_is_found_too(disputed):
    found()
    clock.happen(until=utcnow() + timedelta(days=8))
    [told] = compare(since=timedelta(), settled=timedelta()).repaired
    assert told.endswith(": lost")
    assert get(disputed).dispute_status is DisputeState.LOST
    assert booked(disputed)["dispute_lost"] == 1000
    assert list(ledger_check.verify()) == []
