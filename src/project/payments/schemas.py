"""The shapes of prices, payments, refunds and receipts in requests and answers."""

from typing import Any

from marshmallow import fields
from typing_extensions import override

from project.list_queries import page_query, scope_filters
from project.payments.models import (
    PAYMENT_SORTS,
    PRICE_SORTS,
    REFUND_SORTS,
    CaptureMethod,
    DisputeState,
    Operation,
    PaymentStatus,
    RefundReason,
    RefundStatus,
)
from project.payments.prices import INVALID_AMOUNT, MAX_AMOUNT
from project.schemas import (
    Boolean,
    Choice,
    Id,
    Integer,
    Length,
    Metadata,
    OutSchema,
    QueryBoolean,
    Range,
    Schema,
    String,
    Timestamp,
)
from project.validation import Message

ID = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
TIME = "2030-01-31T12:00:00.000000Z"
MAX_QUANTITY = 10_000


class Amount(Integer):
    """Money to be moved, in the minor unit of its currency."""

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "amount": Message(f"Send an amount from 1 to {MAX_AMOUNT}.", INVALID_AMOUNT)
    }

    def __init__(self, *, example: int | None = None, **options: Any) -> None:
        shown = {} if example is None else {"example": example}
        super().__init__(metadata={"minimum": 1, "maximum": MAX_AMOUNT, **shown}, **options)

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        amount = super()._deserialize(value, attr, data, **kwargs)
        if not 1 <= amount <= MAX_AMOUNT:
            raise self.make_error("amount")
        return amount


class PaymentMetadata(Metadata):
    """What the client wants to know of a payment again: at most 20 texts of 500 characters, by names of 40."""

    max_bytes = 20 * 4 * (40 + 500) + 200

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        labels = super()._deserialize(value, attr, data, **kwargs)
        if len(labels) > 20 or any(not 1 <= len(name) <= 40 or len(text) > 500 for name, text in labels.items()):
            raise self.make_error("length")
        return labels


def money(**options: Any) -> Integer:
    """Return the field of an amount in an answer."""
    return Integer(required=True, metadata={"example": 1250}, **options)


def text(example: str | None, **options: Any) -> fields.String:
    """Return the field of a text in an answer."""
    return fields.String(required=True, metadata={"example": example}, **options)


def currency() -> fields.String:
    """Return the field of a currency in an answer."""
    return text("EUR")


class PriceOut(OutSchema):
    """What something costs: `unit_amount`, or bounds for an amount of the customer's own."""

    id = Id(required=True, metadata={"example": ID})
    name = text("Lesson")
    description = text("One hour", allow_none=True)
    currency = currency()
    unit_amount = money(allow_none=True)
    min_amount = Integer(required=True, allow_none=True, metadata={"example": None})
    max_amount = Integer(required=True, allow_none=True, metadata={"example": None})
    active = Boolean(required=True, metadata={"example": True})
    created_at = Timestamp(required=True, metadata={"example": TIME})


class PriceCreate(Schema):
    """A new price: either `unit_amount`, or `min_amount` and `max_amount`; null counts as absent."""

    name = String(required=True, validate=Length(1, 100), metadata={"example": "Lesson"})
    description = String(allow_none=True, validate=Length(1, 500), metadata={"example": "One hour"})
    currency = String(required=True, validate=Length(3, 3), metadata={"example": "EUR"})
    unit_amount = Amount(example=1250, allow_none=True)
    min_amount = Amount(allow_none=True)
    max_amount = Amount(allow_none=True)


class PriceUpdate(Schema):
    """What admins change about a price; its amounts never change."""

    name = String(validate=Length(1, 100), metadata={"example": "Lesson"})
    description = String(allow_none=True, validate=Length(1, 500), metadata={"example": "One hour"})
    active = Boolean(metadata={"example": False})


PriceQuery = page_query(
    PRICE_SORTS,
    active=QueryBoolean(load_default=True, metadata={"description": "`false`: those that are retired (staff)."}),
)


class PaymentsConfigOut(OutSchema):
    """What a browser needs to know to let somebody pay."""

    provider = text("sandbox")
    publishable_key = text("pk_sandbox")
    livemode = Boolean(required=True, metadata={"example": False})
    currencies = fields.List(fields.String(), required=True, metadata={"example": ["USD", "EUR"]})


class MethodOut(OutSchema):
    """What was paid with."""

    type = text("card")
    brand = text("visa", allow_none=True)
    last4 = text("4242", allow_none=True)


class FailureOut(OutSchema):
    """Why the last attempt failed; `message` may be shown to the customer."""

    code = text("card_declined")
    decline_code = text("insufficient_funds", allow_none=True)
    message = text("There is not enough money on your card.", allow_none=True)


class PaymentOut(OutSchema):
    """A payment. Amounts are in the minor unit of the currency."""

    id = Id(required=True, metadata={"example": ID})
    status = Choice(PaymentStatus, required=True, metadata={"example": "succeeded"})
    amount = money()
    currency = currency()
    amount_capturable = money()
    amount_captured = money()
    amount_refunded = money()
    amount_refundable = money()
    refund_status = fields.String(required=True, metadata={"example": "none", "enum": ["none", "partial", "full"]})
    dispute_status = Choice(DisputeState, required=True, metadata={"example": "none"})
    capture_method = Choice(CaptureMethod, required=True, metadata={"example": "automatic"})
    pending_operation = Choice(Operation, required=True, allow_none=True, metadata={"example": None})
    price_id = Id(required=True, metadata={"example": ID})
    quantity = Integer(required=True, metadata={"example": 1})
    description = text("Lesson", allow_none=True)
    reference = text("order-1001", allow_none=True)
    method = fields.Nested(MethodOut, required=True, allow_none=True)
    failure = fields.Nested(FailureOut, required=True, allow_none=True, metadata={"example": None})
    receipt_number = text("R-2030-000001", allow_none=True)
    metadata = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, attribute="labels", metadata={"example": {}}
    )
    provider = text("sandbox")
    livemode = Boolean(required=True, metadata={"example": False})
    needs_review = Boolean(required=True, metadata={"example": False})
    created_at = Timestamp(required=True, metadata={"example": TIME})
    updated_at = Timestamp(required=True, metadata={"example": TIME})
    succeeded_at = Timestamp(required=True, allow_none=True, metadata={"example": TIME})
    canceled_at = Timestamp(required=True, allow_none=True, metadata={"example": None})


class NewPaymentOut(PaymentOut):
    """A payment with what the customer's browser confirms it with."""

    client_secret = text("pi_sbx_0190f8e25a3b7c4d_secret_5f0c9d7e8b6a4c3d")


class ClientSecretOut(OutSchema):
    """What the customer's browser confirms a payment with."""

    client_secret = text("pi_sbx_0190f8e25a3b7c4d_secret_5f0c9d7e8b6a4c3d")


class PaymentCreate(Schema):
    """A purchase at a price. The amount is the server's: `amount` is only for prices with bounds."""

    price_id = Id(required=True, metadata={"example": ID})
    quantity = Integer(load_default=1, validate=Range(1, MAX_QUANTITY), metadata={"example": 1})
    amount = Amount()
    reference = String(
        validate=Length(1, 64),
        metadata={"example": "order-1001", "description": "Your name for what is bought; one living payment has it."},
    )
    metadata = PaymentMetadata()
    capture_method = Choice(CaptureMethod, metadata={"example": "automatic"})


PaymentQuery = page_query(
    PAYMENT_SORTS,
    status=Choice(PaymentStatus),
    reference=String(validate=Length(1, 64)),
    created_after=Timestamp(),
    **scope_filters(),
)


class SyncQuery(Schema):
    """Whether to look at the provider first."""

    sync = QueryBoolean(load_default=False, metadata={"description": "Ask the provider first; once in 5 seconds."})


class Cancel(Schema):
    """Why a payment is canceled, for the timeline."""

    reason = String(allow_none=True, validate=Length(1, 200), metadata={"example": "Changed my mind"})


class Capture(Schema):
    """How much of what was authorised is taken; all of it without an amount."""

    amount = Amount(example=1250)


class RefundCreate(Schema):
    """How much is given back, all that is left without an amount; `note` is for people."""

    amount = Amount(example=1250)
    reason = Choice(RefundReason, metadata={"example": "requested_by_customer"})
    note = String(allow_none=True, validate=Length(1, 500), metadata={"example": "The lesson was canceled."})


class RefundOut(OutSchema):
    """Money that is given back."""

    id = Id(required=True, metadata={"example": ID})
    payment_id = Id(required=True, metadata={"example": ID})
    amount = money()
    currency = currency()
    status = Choice(RefundStatus, required=True, metadata={"example": "succeeded"})
    reason = Choice(RefundReason, required=True, allow_none=True, metadata={"example": "requested_by_customer"})
    note = text("The lesson was canceled.", allow_none=True)
    failure_reason = text(None, allow_none=True)
    created_at = Timestamp(required=True, metadata={"example": TIME})


RefundQuery = page_query(REFUND_SORTS)


class ReceiptOut(OutSchema):
    """The receipt of a payment; not an invoice, it says nothing of taxes."""

    number = text("R-2030-000001")
    payment_id = Id(required=True, metadata={"example": ID})
    description = text("Lesson", allow_none=True)
    quantity = Integer(required=True, metadata={"example": 1})
    amount = money()
    amount_refunded = money()
    total = money()
    currency = currency()
    method = fields.Nested(MethodOut, required=True, allow_none=True)
    livemode = Boolean(required=True, metadata={"example": False})
    paid_at = Timestamp(required=True, metadata={"example": TIME})
    refunds = fields.List(fields.Nested(RefundOut), required=True, metadata={"example": []})
