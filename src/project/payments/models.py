"""Prices, payments, refunds and disputes, with the constraints that keep their sums right whatever runs at once.

Amounts are integers in the minor unit of their currency. Rows with money in them are never deleted: when an account
is erased they lose the person and keep the amounts.
"""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Record
from project.indexes import only


class CaptureMethod(StrEnum):
    """Whether the money is taken at once or, after it was authorised, by staff."""

    AUTOMATIC = "automatic"
    MANUAL = "manual"


class PaymentStatus(StrEnum):
    """What a payment is at. `snapshots.apply_payment` alone changes it, to what the provider says."""

    CREATED = "created"
    REQUIRES_PAYMENT_METHOD = "requires_payment_method"
    REQUIRES_ACTION = "requires_action"
    PROCESSING = "processing"
    REQUIRES_CAPTURE = "requires_capture"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """True when nothing but money that arrives late can follow."""
        return self in {PaymentStatus.SUCCEEDED, PaymentStatus.CANCELED, PaymentStatus.FAILED}


class Operation(StrEnum):
    """A call to the provider whose outcome is not known yet."""

    CAPTURE = "capture"
    CANCEL = "cancel"


class RefundStatus(StrEnum):
    """What a refund is at, as the provider says it. `succeeded` may still turn into `failed`."""

    PENDING = "pending"
    REQUIRES_ACTION = "requires_action"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class RefundReason(StrEnum):
    """Why money is given back."""

    REQUESTED_BY_CUSTOMER = "requested_by_customer"
    DUPLICATE = "duplicate"
    FRAUDULENT = "fraudulent"
    OTHER = "other"


class RefundOrigin(StrEnum):
    """Who made a refund: our staff, or somebody at the provider."""

    API = "api"
    PROVIDER = "provider"


class DisputeState(StrEnum):
    """A dispute as its payment shows it. An inquiry is a question: no money has moved."""

    NONE = "none"
    INQUIRY = "inquiry"
    OPEN = "open"
    WON = "won"
    LOST = "lost"


class Price(Record):
    """What something costs: a fixed amount for each, or bounds for an amount that the client chooses.

    Amounts never change; a price is retired and another made.
    """

    __tablename__ = "prices"

    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(String(500))
    currency: Mapped[str] = mapped_column(String(3))
    unit_amount: Mapped[int | None] = mapped_column(BigInteger)
    min_amount: Mapped[int | None] = mapped_column(BigInteger)
    max_amount: Mapped[int | None] = mapped_column(BigInteger)
    active: Mapped[bool] = mapped_column(default=True)
    version: Mapped[int] = mapped_column(default=1)

    __table_args__ = (
        CheckConstraint(
            "(unit_amount > 0 AND min_amount IS NULL AND max_amount IS NULL)"
            " OR (unit_amount IS NULL AND min_amount > 0 AND max_amount >= min_amount)",
            name="fixed_or_open",
        ),
        Index("ix_prices_active_created_at_id", "active", "created_at", "id"),
    )


class Payment(Record):
    """Money that a customer owes or has paid for one thing.

    `reference` is the client's own name for what is bought; of several payments with one, at most one is alive, so a
    second press on Pay finds the first payment. `version` counts the changes a client can see.
    """

    __tablename__ = "payments"

    # No foreign key: accounts stay, as rows. PostgreSQL would check it when a row is written twice in a transaction,
    # and so lock the account after the payment, while erasing locks them the other way round.
    user_id: Mapped[UUID | None]
    price_id: Mapped[UUID] = mapped_column(ForeignKey("prices.id"))
    quantity: Mapped[int]
    provider: Mapped[str] = mapped_column(String(16))
    provider_ref: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool] = mapped_column(default=False)
    reference: Mapped[str | None] = mapped_column(String(64))
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    capture_method: Mapped[CaptureMethod] = mapped_column(default=CaptureMethod.AUTOMATIC)
    status: Mapped[PaymentStatus] = mapped_column(default=PaymentStatus.CREATED)
    pending_operation: Mapped[Operation | None]
    # What staff asked to capture while the outcome is unknown; the call is repeated with the same amount.
    pending_amount: Mapped[int | None] = mapped_column(BigInteger)
    amount_capturable: Mapped[int] = mapped_column(BigInteger, default=0)
    amount_captured: Mapped[int] = mapped_column(BigInteger, default=0)
    amount_refunded: Mapped[int] = mapped_column(BigInteger, default=0)
    amount_refund_reserved: Mapped[int] = mapped_column(BigInteger, default=0)
    dispute_status: Mapped[DisputeState] = mapped_column(default=DisputeState.NONE)
    attempts: Mapped[int] = mapped_column(default=0)
    failure_code: Mapped[str | None] = mapped_column(String(64))
    decline_code: Mapped[str | None] = mapped_column(String(64))
    failure_message: Mapped[str | None] = mapped_column(String(255))
    method_type: Mapped[str | None] = mapped_column(String(32))
    method_brand: Mapped[str | None] = mapped_column(String(32))
    method_last4: Mapped[str | None] = mapped_column(String(4))
    description: Mapped[str | None] = mapped_column(String(255))
    labels: Mapped[dict[str, str]] = mapped_column("metadata", JSON, default=dict)
    receipt_number: Mapped[str | None] = mapped_column(String(32))
    needs_review: Mapped[bool] = mapped_column(default=False)
    review_reason: Mapped[str | None] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(default=1)
    authorized_at: Mapped[datetime | None]
    succeeded_at: Mapped[datetime | None]
    canceled_at: Mapped[datetime | None]
    synced_at: Mapped[datetime | None]

    # Not a column: the provider keeps it, and only some answers show it.
    __allow_unmapped__ = True
    client_secret: str | None = None

    __table_args__ = (
        UniqueConstraint("provider", "provider_ref"),
        UniqueConstraint("livemode", "receipt_number"),
        CheckConstraint("amount > 0 AND quantity > 0", name="amount"),
        CheckConstraint("amount_capturable BETWEEN 0 AND amount", name="capturable"),
        CheckConstraint("amount_captured BETWEEN 0 AND amount", name="captured"),
        CheckConstraint(
            "amount_refunded >= 0 AND amount_refund_reserved >= 0"
            " AND amount_refunded + amount_refund_reserved <= amount_captured",
            name="refunds",
        ),
        CheckConstraint("(status = 'succeeded') = (receipt_number IS NOT NULL)", name="succeeded_has_receipt"),
        CheckConstraint("status <> 'succeeded' OR amount_captured > 0", name="succeeded_is_captured"),
        Index(
            "uq_payments_user_id_reference_alive",
            "user_id",
            "reference",
            unique=True,
            **only("status NOT IN ('canceled', 'failed')"),
        ),
        Index("ix_payments_user_id_created_at_id", "user_id", "created_at", "id"),
        Index("ix_payments_status_created_at_id", "status", "created_at", "id"),
        Index("ix_payments_created_at_id", "created_at", "id"),
        Index("ix_payments_reference_created_at_id", "reference", "created_at", "id", **only("reference IS NOT NULL")),
        Index("ix_payments_created_at_asked", "created_at", **only("pending_operation IS NOT NULL")),
        Index("ix_payments_created_at_review", "created_at", **only("needs_review")),
    )

    @property
    def amount_refundable(self) -> int:
        """What can still be given back."""
        return self.amount_captured - self.amount_refunded - self.amount_refund_reserved

    @property
    def method(self) -> dict[str, str | None] | None:
        """What was paid with, as far as it may be shown; None before."""
        if self.method_type is None:
            return None
        return {"type": self.method_type, "brand": self.method_brand, "last4": self.method_last4}

    @property
    def failure(self) -> dict[str, str | None] | None:
        """Why the last attempt failed; None when it did not."""
        if self.failure_code is None:
            return None
        return {"code": self.failure_code, "decline_code": self.decline_code, "message": self.failure_message}

    @property
    def refund_status(self) -> str:
        """How much of it was given back: none, partial or full."""
        if not self.amount_refunded:
            return "none"
        return "full" if self.amount_refunded == self.amount_captured else "partial"


class Refund(Record):
    """Money that is given back. While it is pending, its amount is reserved on the payment."""

    __tablename__ = "refunds"

    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    provider_ref: Mapped[str | None] = mapped_column(String(255), unique=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    status: Mapped[RefundStatus] = mapped_column(default=RefundStatus.PENDING)
    reason: Mapped[RefundReason | None]
    note: Mapped[str | None] = mapped_column(String(500))
    failure_reason: Mapped[str | None] = mapped_column(String(64))
    origin: Mapped[RefundOrigin] = mapped_column(default=RefundOrigin.API)
    requested_by: Mapped[UUID | None]
    succeeded_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        Index("ix_refunds_payment_id_created_at_id", "payment_id", "created_at", "id"),
        Index("ix_refunds_status_created_at", "status", "created_at"),
    )


class Dispute(Record):
    """A customer's complaint at their bank, as the provider has it; we only mirror it."""

    __tablename__ = "disputes"

    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"), index=True)
    provider_ref: Mapped[str] = mapped_column(String(255), unique=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    reason: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(32))
    evidence_due_by: Mapped[datetime | None]
    funds_withdrawn: Mapped[bool] = mapped_column(default=False)
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        Index("ix_disputes_created_at_id", "created_at", "id"),
        Index("ix_disputes_payment_id_open", "payment_id", **only("closed_at IS NULL")),
    )


PRICE_SORTS = {"created_at": Price.created_at}
PAYMENT_SORTS = {"created_at": Payment.created_at}
REFUND_SORTS = {"created_at": Refund.created_at}
DISPUTE_SORTS = {"created_at": Dispute.created_at}
