"""Webhook events: rows made in the transaction of what they tell, so that none is lost and none tells what is not."""

import json
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, or_

from project.database import db, transaction, utcnow
from project.jobs import defer
from project.payments.sandbox.delivery import MAX_ATTEMPTS, deliver
from project.payments.sandbox.faults import EVENT_FAULTS, Fault, take
from project.payments.sandbox.models import SandboxEvent, new_id

KEEP = timedelta(days=30)
# Longer nobody waits for the events of a lesson about their order.
MAX_SECONDS_LATE = 30


def emit(kind: str, wire: dict[str, Any]) -> None:
    """Tell of a change to this object, in the caller's transaction."""
    now = utcnow()
    event_id = new_id("evt")
    event = {
        "id": event_id,
        "object": "event",
        "created": int(now.timestamp()),
        "data": {"object": wire},
        "livemode": False,
        "pending_webhooks": 1,
        "type": kind,
    }
    fault, late = _fault()
    row = SandboxEvent(
        id=event_id, created_at=now, type=kind, payload=json.dumps(event), fault=fault, due_at=now + late
    )
    db.session.add(row)
    db.session.flush()
    defer(deliver, run_at=row.due_at)


def _fault() -> tuple[Fault | None, timedelta]:
    """Return what goes wrong with the next event, and how much later than it could it is delivered."""
    taken = take(EVENT_FAULTS)
    if taken is None:
        return None, timedelta()
    fault, count = taken
    # The first waits longest, and each later one a second less: so the last is the first to be delivered.
    late = min(count, MAX_SECONDS_LATE) if fault is Fault.REORDER_WEBHOOKS else 0
    return fault, timedelta(seconds=late)


def purge() -> None:
    """Delete events of long ago that were delivered, or that nobody has taken however often they came."""
    over = or_(SandboxEvent.delivered_at.is_not(None), SandboxEvent.attempts >= MAX_ATTEMPTS)
    old = delete(SandboxEvent).where(SandboxEvent.created_at < utcnow() - KEEP, over)
    with transaction():
        db.session.execute(old)
