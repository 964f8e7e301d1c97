"""Webhook events: stored when verified, then acted on by a job. An event only says which object to look at."""

import logging
from uuid import UUID

from sqlalchemy import select, update

from project.database import db, give_back, insert, transaction, utcnow, uuid7
from project.errors import Conflict, NotFound
from project.jobs import defer, task
from project.pagination import Page, PageRequest, paginate
from project.payments.gateway import current_gateway
from project.payments.gateway_types import Event, NoSuchObject
from project.payments.journal import EVENT_SORTS, EventStatus, WebhookEvent
from project.payments.models import Payment
from project.payments.snapshots import apply_dispute, apply_payment, apply_refund

logger = logging.getLogger(__name__)

_FAILED_ATTEMPT = "payment_intent.payment_failed"


class AlreadyProcessed(Conflict):
    """409: the event was acted on."""

    code = "already_processed"
    message = "This event has been processed already."
    cure = "Nothing is left to do."


def receive(event: Event, payload: str, *, provider: str) -> None:
    """Store a verified event and have it acted on; one that comes again changes nothing."""
    row = {
        "id": uuid7(),
        "provider": provider,
        "event_id": event.id,
        "type": event.type,
        "livemode": event.livemode,
        "object_type": event.object_type,
        "object_ref": event.object_ref,
        "payload": payload,
        "status": EventStatus.RECEIVED,
        "attempts": 0,
        "created_at": utcnow(),
        "updated_at": utcnow(),
    }
    with transaction():
        new = insert(WebhookEvent).values(row).on_conflict_do_nothing().returning(WebhookEvent.id)
        if db.session.scalar(new) is not None:
            defer(process, event_id=row["id"])


@task
def process(*, event_id: str) -> None:
    """Look at the object that an event names and apply what it is now.

    Raises:
        GatewayError: the event stays `failed`, and the job comes again.
    """
    event = _begin(UUID(event_id))
    if event is None:
        return
    try:
        ours = event.livemode == current_gateway().livemode and _apply(event)
    except Exception as error:
        _end(event, EventStatus.FAILED, error=type(error).__name__)
        raise
    _end(event, EventStatus.PROCESSED if ours else EventStatus.IGNORED)


def retry(event_id: UUID) -> WebhookEvent:
    """Act on an event again that could not be acted on.

    Raises:
        NotFound, AlreadyProcessed.
    """
    again = update(WebhookEvent).where(WebhookEvent.id == event_id, WebhookEvent.status.in_(_WAITING))
    with transaction():
        event = db.session.scalar(
            again.values(status=EventStatus.RECEIVED).returning(WebhookEvent),
            execution_options={"populate_existing": True},
        )
        if event is None:
            if db.session.get(WebhookEvent, event_id) is None:
                raise NotFound("There is no such event.")
            raise AlreadyProcessed()
        defer(process, event_id=event_id)
    return event


def list_events(*, caller_id: UUID, page: PageRequest, status: EventStatus | None = None) -> Page[WebhookEvent]:
    """Return a page of the events, newest first."""
    statement = select(WebhookEvent)
    if status is not None:
        statement = statement.where(WebhookEvent.status == status)
    return paginate(statement, page, sorts=EVENT_SORTS, tiebreaker=WebhookEvent.id, owner=caller_id)


_WAITING = (EventStatus.RECEIVED, EventStatus.FAILED)


def _begin(event_id: UUID) -> WebhookEvent | None:
    waiting = update(WebhookEvent).where(WebhookEvent.id == event_id, WebhookEvent.status.in_(_WAITING))
    with transaction():
        event: WebhookEvent | None = db.session.scalar(
            waiting.values(attempts=WebhookEvent.attempts + 1).returning(WebhookEvent),
            execution_options={"populate_existing": True},
        )
    return event


def _end(event: WebhookEvent, status: EventStatus, *, error: str | None = None) -> None:
    done = None if status is EventStatus.FAILED else utcnow()
    mine = update(WebhookEvent).where(WebhookEvent.id == event.id, WebhookEvent.status.in_(_WAITING))
    values = {"status": status, "last_error": error, "processed_at": done}
    with transaction():
        counted = db.session.scalar(mine.values(values).returning(WebhookEvent.id)) is not None
        if counted and status is EventStatus.PROCESSED and event.type == _FAILED_ATTEMPT:
            tried = update(Payment).where(Payment.provider_ref == event.object_ref)
            db.session.execute(tried.values(attempts=Payment.attempts + 1))


def _apply(event: WebhookEvent) -> bool:
    """Apply what the event's object is now; False when it is none of ours."""
    gateway, actor = current_gateway(), f"webhook:{event.event_id}"
    give_back()
    try:
        match event.object_type:
            case "payment_intent":
                snapshot = gateway.retrieve_payment(event.object_ref)
                if snapshot.payment_id is None:
                    return False
                apply_payment(snapshot.payment_id, snapshot, actor=actor)
            case "charge":
                for refund in gateway.list_refunds(event.object_ref):
                    apply_refund(refund, actor=actor)
            case "refund":
                return apply_refund(gateway.retrieve_refund(event.object_ref), actor=actor) is not None
            case "dispute":
                return apply_dispute(gateway.retrieve_dispute(event.object_ref), actor=actor) is not None
            case _:
                return False
    except NoSuchObject:
        return False
    return True
