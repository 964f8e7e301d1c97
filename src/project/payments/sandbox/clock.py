"""What happens by itself: banks that answer later, refunds that come back, complaints, and time that runs out."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import select

from project.config import settings
from project.database import db, transaction, utcnow
from project.jobs import periodic
from project.payments.sandbox import attempts, disputes, refunds
from project.payments.sandbox.delivery import Send, deliver_due, post
from project.payments.sandbox.models import FRESH, SandboxDispute, SandboxIntent, SandboxRefund

# Far enough for all but the end of the time to answer a dispute.
HOUR = timedelta(hours=1)

Row = TypeVar("Row", SandboxIntent, SandboxRefund, SandboxDispute)


def advance(send: Send, *, by: timedelta = HOUR) -> int:
    """Let happen what will within this time and deliver all events; return how many were taken."""
    until = utcnow() + by
    happen(until=until)
    return deliver_due(send, until=until)


@periodic("* * * * *")
def tick() -> None:
    """Let happen what is due and deliver what was not taken, every minute; only where the sandbox is the provider."""
    if settings.payments.provider == "sandbox":
        happen()
        deliver_due(post)


def happen(*, until: datetime | None = None) -> int:
    """Let happen what is due; return how much it was."""
    until = until or utcnow()
    return (
        _fire(SandboxIntent, _intent, until)
        + _fire(SandboxRefund, refunds.settle, until)
        + _fire(SandboxDispute, disputes.expire, until)
    )


def _fire(model: type[Row], function: Callable[[Row], None], until: datetime) -> int:
    due = select(model.id).where(model.due_at <= until).order_by(model.due_at, model.id)
    return sum(_fire_one(model, ref, function, until) for ref in db.session.scalars(due).all())


def _fire_one(model: type[Row], ref: str, function: Callable[[Row], None], until: datetime) -> bool:
    """Let it happen, unless somebody else was faster."""
    waiting = select(model).where(model.id == ref, model.due_at <= until).with_for_update()
    with transaction():
        row = db.session.scalar(waiting, execution_options=FRESH)
        if row is not None:
            function(row)
    return row is not None


def _intent(intent: SandboxIntent) -> None:
    if intent.wire["status"] == "processing":
        attempts.settle(intent)
    else:
        disputes.open_dispute(intent)
