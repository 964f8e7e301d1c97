"""HTTP for staff: disputes, webhook events, the timeline of a payment, and the books."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from flask import Response

from project.blueprint import Blueprint
from project.errors import NotFound
from project.limits import limit
from project.pagination import Page
from project.payments import disputes, exports, inbox, ledger, service, timeline
from project.payments.inbox import AlreadyProcessed
from project.payments.journal import LedgerEntry, TimelineEntry, WebhookEvent
from project.payments.ledger import Balance
from project.payments.models import Dispute
from project.payments.staff_schemas import (
    BalanceOut,
    DisputeOut,
    DisputeQuery,
    EventOut,
    EventQuery,
    LedgerEntryOut,
    LedgerFilter,
    LedgerQuery,
    TimelineEntryOut,
    TimelineQuery,
)
from project.security import Role, principal, role_required

blueprint = Blueprint("payment_records", __name__, url_prefix="/payments", description="What staff see of payments")
ledger_blueprint = Blueprint("ledger", __name__, url_prefix="/ledger", description="The books, for staff")

CSV = {"type": "string"}
HEADER_LINE = ",".join(LedgerEntryOut().fields) + "\r\n"
ATTACHMENT = {"Content-Disposition": {"$ref": "#/components/headers/Content-Disposition"}}


@blueprint.get("/disputes")
@limit("read")
@role_required(Role.STAFF)
@blueprint.arguments(DisputeQuery, location="query")
@blueprint.response(HTTPStatus.OK, DisputeOut(many=True))
def list_disputes(query: dict[str, Any]) -> Page[Dispute]:
    """List what customers complained of at their banks; it is answered at the provider (staff)."""
    return disputes.list_disputes(caller_id=principal().id, **query)


@blueprint.get("/events")
@limit("read")
@role_required(Role.STAFF)
@blueprint.arguments(EventQuery, location="query")
@blueprint.response(HTTPStatus.OK, EventOut(many=True))
def list_events(query: dict[str, Any]) -> Page[WebhookEvent]:
    """List the webhook events that came and what became of them (staff)."""
    return inbox.list_events(caller_id=principal().id, **query)


@blueprint.post("/events/<uuid:event_id>/retry")
@limit("write")
@role_required(Role.STAFF)
@blueprint.response(HTTPStatus.OK, EventOut)
@blueprint.raises(NotFound, AlreadyProcessed)
def retry_event(event_id: UUID) -> WebhookEvent:
    """Act again on an event that could not be acted on (staff)."""
    return inbox.retry(event_id)


@blueprint.get("/<uuid:payment_id>/timeline")
@limit("read")
@role_required(Role.STAFF)
@blueprint.arguments(TimelineQuery, location="query")
@blueprint.response(HTTPStatus.OK, TimelineEntryOut(many=True))
@blueprint.raises(NotFound)
def get_timeline(query: dict[str, Any], payment_id: UUID) -> Page[TimelineEntry]:
    """List what happened to a payment, and who did it (staff)."""
    service.get_payment(payment_id, reader_id=None)
    return timeline.list_entries(payment_id, caller_id=principal().id, **query)


@ledger_blueprint.get("/entries")
@limit("read")
@role_required(Role.STAFF)
@ledger_blueprint.arguments(LedgerQuery, location="query")
@ledger_blueprint.response(HTTPStatus.OK, LedgerEntryOut(many=True))
def list_ledger_entries(query: dict[str, Any]) -> Page[LedgerEntry]:
    """List transfers between accounts (staff)."""
    return ledger.list_entries(caller_id=principal().id, **query)


@ledger_blueprint.get("/balances")
@limit("read")
@role_required(Role.STAFF)
@ledger_blueprint.arguments(LedgerFilter, location="query")
@ledger_blueprint.response(HTTPStatus.OK, BalanceOut(many=True))
def list_balances(query: dict[str, Any]) -> Page[Balance]:
    """Show debits less credits of each account and currency, all on one page (staff)."""
    balances = ledger.balances(**query)
    return Page(balances, limit=len(balances))


@ledger_blueprint.get("/export.csv")
@limit("read")
@role_required(Role.STAFF)
@ledger_blueprint.arguments(LedgerFilter, location="query")
@ledger_blueprint.response(HTTPStatus.OK, CSV, content_type="text/csv", example=HEADER_LINE, headers=ATTACHMENT)
def export_ledger(query: dict[str, Any]) -> Response:
    """Download the transfers as CSV (RFC 4180), the oldest first (staff)."""
    return exports.as_csv(ledger.all_entries(**query))
