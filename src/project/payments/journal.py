"""What is written down beside payments: the provider's events, the timeline, the books and the receipts' numbers."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Base, Record, utcnow, uuid7
from project.indexes import only


class EventStatus(StrEnum):
    """What became of a webhook event: not looked at yet, acted on, not ours, or to be tried again."""

    RECEIVED = "received"
    PROCESSED = "processed"
    IGNORED = "ignored"
    FAILED = "failed"


class WebhookEvent(Record):
    """An event of the provider as it came, verified. It only says which object to look at."""

    __tablename__ = "webhook_events"

    provider: Mapped[str] = mapped_column(String(16))
    event_id: Mapped[str] = mapped_column(String(255))
    type: Mapped[str] = mapped_column(String(64))
    livemode: Mapped[bool]
    object_type: Mapped[str] = mapped_column(String(32))
    object_ref: Mapped[str] = mapped_column(String(255), index=True)
    payload: Mapped[str | None]  # as received; None once it was purged
    status: Mapped[EventStatus] = mapped_column(default=EventStatus.RECEIVED)
    attempts: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str | None] = mapped_column(String(128))
    processed_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("provider", "event_id"),
        Index("ix_webhook_events_status_created_at_id", "status", "created_at", "id"),
        Index("ix_webhook_events_created_at_id", "created_at", "id"),
        Index("ix_webhook_events_created_at_payload", "created_at", **only("payload IS NOT NULL")),
    )


class TimelineEntry(Base):
    """One thing that happened to a payment, for the people who look after it."""

    __tablename__ = "payment_timeline"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    at: Mapped[datetime] = mapped_column(default=utcnow)
    actor: Mapped[str] = mapped_column(String(64))  # user, staff:<id>, webhook:<id>, reconcile, system
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

    __table_args__ = (Index("ix_payment_timeline_payment_id_at_id", "payment_id", "at", "id"),)


class LedgerEntry(Base):
    """One transfer between two accounts: what is debited is credited, so no entry can be out of balance.

    Triggers refuse to change or delete a row; a mistake is corrected by the transfer back.
    """

    __tablename__ = "ledger_entries"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    kind: Mapped[str] = mapped_column(String(32))
    debit_account: Mapped[str] = mapped_column(String(64))
    credit_account: Mapped[str] = mapped_column(String(64))
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    livemode: Mapped[bool]
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"), index=True)
    source_type: Mapped[str] = mapped_column(String(16))  # payment, refund, dispute
    source_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(default=utcnow)

    __table_args__ = (
        # Whatever runs twice, money moves once.
        UniqueConstraint("kind", "source_type", "source_id"),
        CheckConstraint("amount > 0 AND debit_account <> credit_account", name="moves_money"),
        Index("ix_ledger_entries_created_at_id", "created_at", "id"),
        Index("ix_ledger_entries_debit_account_created_at_id", "debit_account", "created_at", "id"),
        Index("ix_ledger_entries_credit_account_created_at_id", "credit_account", "created_at", "id"),
    )


class ReceiptCounter(Base):
    """The last receipt number of a year; it grows in the transaction of the success, so no number is left out."""

    __tablename__ = "receipt_counters"

    year: Mapped[int] = mapped_column(primary_key=True)
    livemode: Mapped[bool] = mapped_column(primary_key=True)
    last: Mapped[int] = mapped_column(default=0)


EVENT_SORTS = {"created_at": WebhookEvent.created_at}
TIMELINE_SORTS = {"created_at": TimelineEntry.at}
ENTRY_SORTS = {"created_at": LedgerEntry.created_at}
