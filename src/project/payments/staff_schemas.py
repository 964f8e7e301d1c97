"""The shapes of what staff see beside payments: disputes, webhook events, the timeline and the books."""

from typing import Any

from marshmallow import fields

from project.list_queries import page_query
from project.payments.journal import ENTRY_SORTS, EVENT_SORTS, TIMELINE_SORTS, EventStatus
from project.payments.models import DISPUTE_SORTS
from project.payments.schemas import ID, TIME, currency, money, text
from project.schemas import Boolean, Choice, Id, Integer, Length, OutSchema, Schema, String, Timestamp


class DisputeOut(OutSchema):
    """A customer's complaint at their bank, as the provider has it."""

    id = Id(required=True, metadata={"example": ID})
    payment_id = Id(required=True, metadata={"example": ID})
    provider_ref = text("dp_sbx_0190f8e25a3b7c4d")
    amount = money()
    currency = currency()
    reason = text("fraudulent")
    status = text("needs_response")
    evidence_due_by = Timestamp(required=True, allow_none=True, metadata={"example": TIME})
    funds_withdrawn = Boolean(required=True, metadata={"example": True})
    created_at = Timestamp(required=True, metadata={"example": TIME})
    updated_at = Timestamp(required=True, metadata={"example": TIME})
    closed_at = Timestamp(required=True, allow_none=True, metadata={"example": None})


DisputeQuery = page_query(DISPUTE_SORTS, payment_id=Id())


class EventOut(OutSchema):
    """A webhook event that came, and what became of it."""

    id = Id(required=True, metadata={"example": ID})
    provider = text("sandbox")
    event_id = text("evt_sbx_0190f8e25a3b7c4d")
    type = text("payment_intent.succeeded")
    livemode = Boolean(required=True, metadata={"example": False})
    object_type = text("payment_intent")
    object_ref = text("pi_sbx_0190f8e25a3b7c4d")
    status = Choice(EventStatus, required=True, metadata={"example": "processed"})
    attempts = Integer(required=True, metadata={"example": 1})
    last_error = text(None, allow_none=True)
    received_at = Timestamp(required=True, attribute="created_at", metadata={"example": TIME})
    processed_at = Timestamp(required=True, allow_none=True, metadata={"example": TIME})


EventQuery = page_query(EVENT_SORTS, status=Choice(EventStatus))


class TimelineEntryOut(OutSchema):
    """One thing that happened to a payment."""

    id = Id(required=True, metadata={"example": ID})
    at = Timestamp(required=True, metadata={"example": TIME})
    actor = text("user")
    type = text("status")
    data = fields.Dict(required=True, keys=fields.String(), metadata={"example": {"after": "succeeded"}})


TimelineQuery = page_query(TIMELINE_SORTS)


class LedgerEntryOut(OutSchema):
    """One transfer between two accounts."""

    id = Id(required=True, metadata={"example": ID})
    kind = text("capture")
    debit_account = text("assets:provider:sandbox")
    credit_account = text("income:payments")
    amount = money()
    currency = currency()
    payment_id = Id(required=True, metadata={"example": ID})
    source_type = text("payment")
    source_id = Id(required=True, metadata={"example": ID})
    created_at = Timestamp(required=True, metadata={"example": TIME})


class BalanceOut(OutSchema):
    """Debits less credits of an account in one currency."""

    account = text("assets:provider:sandbox")
    currency = currency()
    balance = Integer(required=True, metadata={"example": 1250})


LEDGER_FILTERS: dict[str, fields.Field[Any]] = {
    "account": String(validate=Length(1, 64), metadata={"description": "On either side."}),
    "payment_id": Id(),
    "after": Timestamp(data_key="from", metadata={"description": "From this time on."}),
    "before": Timestamp(data_key="to", metadata={"description": "Until before this time."}),
}
LedgerQuery = page_query(ENTRY_SORTS, **LEDGER_FILTERS)


class LedgerFilter(Schema.from_dict(LEDGER_FILTERS)):  # type: ignore[misc]  # made by the call
    """Which entries count."""


class ReceivedOut(OutSchema):
    """The event was stored."""

    received = Boolean(required=True, metadata={"example": True})
