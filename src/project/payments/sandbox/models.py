"""The sandbox gateway's own rows: what Stripe would keep for us. Nothing outside this package reads them.

`wire` is an object as the API shows it; the columns beside it are what is searched and guarded.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Base, utcnow, uuid7

# Of a query: the session may hold the row as it was in an earlier call.
FRESH = {"populate_existing": True}


def new_id(kind: str) -> str:
    """Return an id such as pi_sbx_…; ids of one kind are in the order of their making."""
    return f"{kind}_sbx_{uuid7().hex}"


class SandboxIntent(Base):
    """A PaymentIntent and its latest charge. `refundable` is what was captured and not given back yet."""

    __tablename__ = "sandbox_intents"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    wire: Mapped[dict[str, Any]] = mapped_column(JSON)
    charge: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    refundable: Mapped[int] = mapped_column(BigInteger, default=0)
    return_url: Mapped[str | None] = mapped_column(Text)  # where the customer goes after approving the last attempt
    due_at: Mapped[datetime | None] = mapped_column(index=True)  # when its bank answers, or its customer complains

    __table_args__ = (CheckConstraint("refundable >= 0", name="refundable"),)


class SandboxRefund(Base):
    """A refund."""

    __tablename__ = "sandbox_refunds"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    intent_id: Mapped[str] = mapped_column(ForeignKey("sandbox_intents.id"), index=True)
    wire: Mapped[dict[str, Any]] = mapped_column(JSON)
    due_at: Mapped[datetime | None] = mapped_column(index=True)  # when the bank takes it, or sends it back


class SandboxDispute(Base):
    """A dispute."""

    __tablename__ = "sandbox_disputes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    intent_id: Mapped[str] = mapped_column(ForeignKey("sandbox_intents.id"), index=True)
    wire: Mapped[dict[str, Any]] = mapped_column(JSON)
    due_at: Mapped[datetime | None] = mapped_column(index=True)  # until when it can be answered


class SandboxEvent(Base):
    """A webhook event to be delivered, written in the transaction of what it tells."""

    __tablename__ = "sandbox_events"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    type: Mapped[str] = mapped_column(String(64))
    payload: Mapped[str] = mapped_column(Text)
    fault: Mapped[str | None] = mapped_column(String(32))  # what goes wrong with its delivery
    due_at: Mapped[datetime] = mapped_column(default=utcnow)
    attempts: Mapped[int] = mapped_column(default=0)
    delivered_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_sandbox_events_delivered_at_due_at_id", "delivered_at", "due_at", "id"),)


class SandboxKey(Base):
    """An Idempotency-Key and the answer that it stands for; without one while its request runs."""

    __tablename__ = "sandbox_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
    locked_at: Mapped[datetime] = mapped_column(default=utcnow)
    status: Mapped[int | None]
    body: Mapped[str | None] = mapped_column(Text)


class SandboxFault(Base):
    """Something that is to go wrong the next `remaining` times."""

    __tablename__ = "sandbox_faults"

    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    remaining: Mapped[int] = mapped_column(default=0)

    __table_args__ = (CheckConstraint("remaining >= 0", name="remaining"),)
