"""What the tests of payments share: prices, payments made by the services and paid in the sandbox.

All of it needs an application context. Jobs do not run by themselves: after `pay` the payment is what the sandbox
says once `run_jobs()` has delivered the events, or at once with `paid`, which looks at the provider.
"""

from collections import defaultdict
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import func, select

from project.database import db, uuid7
from project.payments import prices, refunds, service
from project.payments.journal import LedgerEntry
from project.payments.models import CaptureMethod, Payment, Price, Refund
from project.payments.sandbox import browser, clock
from project.payments.sandbox.delivery import post
from project.security import Principal
from project.users.models import User
from tests.factories import make_user

VISA = "pm_card_visa"


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


class WatchedGateway:
    """The sandbox's gateway: it keeps what it was asked for, and fails as it is told to."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._before: dict[str, list[Any]] = defaultdict(list)
        self._after: dict[str, list[Any]] = defaultdict(list)
        self.asked: list[str] = []
        self.keys: list[str] = []

    def fail(self, verb: str, error: BaseException, *, after: bool = False) -> None:
        """Let the next call of a verb fail, before it does anything or after it has done it."""
        (self._after if after else self._before)[verb].append(error)

    def answer(self, verb: str, answer: Any) -> None:
        """Let the next call of a verb have this answer, and do nothing."""
        self._before[verb].append(answer)

    def __getattr__(self, verb: str) -> Any:
        """Return the verb, watched."""
        method = getattr(self._gateway, verb)
        if not callable(method):
            return method

        def ask(*args: Any, **options: Any) -> Any:
            self.asked.append(verb)
            self.keys += [options["key"]] if "key" in options else []
            answer = self._before[verb].pop(0) if self._before[verb] else method(*args, **options)
            answer = self._after[verb].pop(0) if self._after[verb] else answer
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return ask


def make_price(*, currency: str = "USD", **values: Any) -> Price:
    """Add a price: 10.00 USD, if nothing else is said."""
    amounts = {} if "min_amount" in values else {"unit_amount": 1000}
    return prices.create_price(actor_id=None, **{"name": "Lessons", "currency": currency, **amounts, **values})


def caller(user: User) -> Principal:
    """Return an account as the caller of a service."""
    return Principal(user, uuid4())


def owner_of(payment: Payment) -> User:
    """Return whose payment it is."""
    return db.session.scalars(select(User).where(User.id == payment.user_id)).one()


def make_payment(
    user: User | None = None, *, price: Price | None = None, manual: bool = False, **values: Any
) -> Payment:
    """Make a payment, of somebody new if nobody is named; it waits for its customer."""
    owner, price = user or make_user(), price or make_price()
    capture_method = CaptureMethod.MANUAL if manual else CaptureMethod.AUTOMATIC
    return service.create_payment(user_id=owner.id, price_id=price.id, capture_method=capture_method, **values)


def pay(payment: Payment, method: str = VISA) -> browser.Outcome:
    """Confirm a payment as the customer's browser does; our row hears of it by an event."""
    assert payment.provider_ref is not None
    secret = service.fetch_client_secret(payment.id)
    return browser.confirm(payment.provider_ref, client_secret=secret, payment_method=method)


def approve(payment: Payment, outcome: Any = "approve") -> browser.Outcome:
    """Approve a payment as the customer, or fail to."""
    assert payment.provider_ref is not None
    secret = service.fetch_client_secret(payment.id)
    return browser.authenticate(payment.provider_ref, client_secret=secret, outcome=outcome)


def sync(payment: Payment) -> Payment:
    """Make a payment what the provider says it is now."""
    return service.update_from_provider(get(payment), actor="user")


def paid(user: User | None = None, method: str = VISA, **values: Any) -> Payment:
    """Make a payment, pay it, and let our row know: succeeded, or requires_capture with `manual`."""
    payment = make_payment(user, **values)
    pay(payment, method)
    return sync(payment)


def refund(payment: Payment, amount: int | None = None, *, staff: User | None = None, **values: Any) -> Refund:
    """Give back a part of a payment, or all that is left, as staff do."""
    staff_id = staff.id if staff else uuid7()
    return refunds.create_refund(payment.id, staff_id=staff_id, amount=amount, **values)


def advance(by: timedelta = clock.HOUR) -> int:
    """Let happen what will within this time, and deliver the events through the webhook's route."""
    return clock.advance(post, by=by)


def get(payment: Payment) -> Payment:
    """Return a payment as it is in the database now."""
    found = select(Payment).where(Payment.id == payment.id)
    return db.session.scalars(found, execution_options={"populate_existing": True}).one()


def get_refund(refund: Refund) -> Refund:
    """Return a refund as it is in the database now."""
    found = select(Refund).where(Refund.id == refund.id)
    return db.session.scalars(found, execution_options={"populate_existing": True}).one()


def booked(payment: Payment) -> dict[str, int]:
    """Return the sum of each kind of transfer that was posted for a payment."""
    sums = select(LedgerEntry.kind, func.sum(LedgerEntry.amount)).where(LedgerEntry.payment_id == payment.id)
    return {kind: int(amount) for kind, amount in db.session.execute(sums.group_by(LedgerEntry.kind))}
