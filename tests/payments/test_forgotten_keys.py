"""The provider forgets our keys after a day: what we ask for later must not be done a second time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import func, select

from project.database import db, utcnow
from project.payments import operations, service
from project.payments.failures import ProviderUnavailable
from project.payments.models import Payment, PaymentStatus
from project.payments.sandbox import faults, keys
from project.payments.sandbox.models import SandboxIntent
from project.users.models import User
from tests.factories import make_user
from tests.payments import paying

WAYS: dict[str, Callable[[Payment], Any]] = {
    "look": lambda payment: service.update_from_provider(payment, actor="user"),
    "secret": lambda payment: service.get_client_secret(payment.id, user_id=payment.user_id or payment.id),
    "cancel": lambda payment: operations.cancel_payment(
        payment.id, caller=paying.caller(db.session.get_one(User, payment.user_id))
    ),
}


def intents() -> int | None:
    return db.session.scalar(select(func.count()).select_from(SandboxIntent))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", [faults.Fault.TIMEOUT_BEFORE, faults.Fault.TIMEOUT_AFTER])
def test_a_payment_whose_making_had_no_answer_is_made_once_however_late_one_comes_back(session, way, fault):
    owner = make_user()
    faults.set_fault(fault, count=1)
    with pytest.raises(ProviderUnavailable):
        paying.make_payment(owner)
    with time_machine.travel(utcnow() + timedelta(hours=25)):
        keys.purge()
        WAYS[way](session.scalars(select(Payment)).one())
    assert intents() == 1
    assert session.scalars(select(Payment)).one().status is not PaymentStatus.CREATED
