"""What is to go wrong: counted in rows, so that it does whichever process comes next."""

from collections.abc import Collection
from enum import StrEnum

from sqlalchemy import select, update

from project.database import db, insert, transaction
from project.payments.sandbox.models import SandboxFault


class Fault(StrEnum):
    """Something that goes wrong. Those of calls befall the next calls that change something, not those that only look.

    A call that fails has failed for good: the SDK does not try it again, as it would with the first loss of a network.
    """

    TIMEOUT_BEFORE = "timeout_before"  # nothing is done, and there is no answer
    TIMEOUT_AFTER = "timeout_after"  # it is done, and there is no answer
    HTTP_500 = "http_500"  # nothing is done
    RATE_LIMIT = "rate_limit"  # nothing is done
    DROP_WEBHOOK = "drop_webhook"  # the event is never delivered
    DUPLICATE_WEBHOOK = "duplicate_webhook"  # it is delivered twice
    REORDER_WEBHOOKS = "reorder_webhooks"  # so many events are delivered in the wrong order, within some seconds
    BAD_SIGNATURE = "bad_signature"  # it is signed with another secret, until it is delivered again


CALL_FAULTS = frozenset({Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT})
EVENT_FAULTS = frozenset(Fault) - CALL_FAULTS


def set_fault(fault: Fault, *, count: int) -> None:
    """Let something go wrong the next `count` times; 0 ends it."""
    row = insert(SandboxFault).values(kind=fault.value, remaining=count)
    with transaction():
        db.session.execute(row.on_conflict_do_update(index_elements=["kind"], set_={"remaining": count}))


def take(kinds: Collection[Fault]) -> tuple[Fault, int] | None:
    """Use up one of these faults, in the caller's transaction if there is one; return it and how many were left."""
    # A look first: nearly always there is none, and then nothing has to be written.
    left = select(SandboxFault.kind).where(SandboxFault.kind.in_(kinds), SandboxFault.remaining > 0)
    for kind in db.session.scalars(left.order_by(SandboxFault.kind)).all():
        used = update(SandboxFault).where(SandboxFault.kind == kind, SandboxFault.remaining > 0)
        with transaction():
            remaining = db.session.scalar(
                used.values(remaining=SandboxFault.remaining - 1).returning(SandboxFault.remaining)
            )
        if remaining is not None:
            return Fault(kind), remaining + 1
    return None
