"""Webhook events: stored when verified, then acted on by a job. An event only says which object to look at."""

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update

from project import metrics
from project.config import settings
from project.database import db, give_back, insert, transaction, utcnow, uuid7
from project.errors import Conflict, NotFound
from project.jobs import defer, task
from project.pagination import Page, PageRequest, paginate
from project.payments.expiry import cancel_tried
from project.payments.gateway import current_gateway
from project.payments.gateway_types import BadSignature, Event, GatewayError, NoSuchObject
from project.payments.journal import EVENT_SORTS, EventStatus, WebhookEvent
from project.payments.models import Payment, PaymentStatus
from project.payments.sandbox.delivery import signing_secret
from project.payments.snapshots import apply_dispute, apply_payment, apply_refund

logger = logging.getLogger(__name__)

KEEP_PAYLOADS = timedelta(days=90)
WAITING = (EventStatus.RECEIVED, EventStatus.FAILED)

_FAILED_ATTEMPT = "payment_intent.payment_failed"


class AlreadyProcessed(Conflict):
    """409: the event was acted on."""

    code = "already_processed"
    message = "This event has been processed already."
    cure = "Nothing is left to do."


class UnknownPayment(GatewayError):
    """The provider has a payment that says it is ours, and we have no such row."""


def receive(event: Event, payload: str, *, provider: str) -> None:
    """Store a verified event and have it acted on; one that comes again changes nothing."""
    # A look first: it takes no lock, and a provider that repeats itself does so often.
    known = _find(provider, event)
    if known is None and _store(event, payload, provider=provider):
        metrics.WEBHOOKS.labels("received").inc()
        return
    metrics.WEBHOOKS.labels("repeated").inc()
    known = known or _find(provider, event)
    if known is not None and not _is_same(known, event, payload):
        # Whoever has the secret sends other news under the name of old ones.
        logger.error("webhook_event_differs", extra={"event_id": event.id, "kind": event.type})


def take(raw: bytes, header: str) -> int:
    """Take a webhook of the sandbox as its route does, but without a request; return the status of the answer."""
    try:
        event = current_gateway().parse_webhook(raw, header, secrets=[signing_secret()], now=utcnow())
    except BadSignature:
        return HTTPStatus.BAD_REQUEST
    receive(event, raw.decode(), provider="sandbox")
    return HTTPStatus.OK


def _find(provider: str, event: Event) -> WebhookEvent | None:
    known = select(WebhookEvent).where(WebhookEvent.provider == provider, WebhookEvent.event_id == event.id)
    return db.session.scalar(known)


def _store(event: Event, payload: str, *, provider: str) -> bool:
    """Store an event together with the job that acts on it, unless it is there already."""
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
    new = insert(WebhookEvent).values(row).on_conflict_do_nothing().returning(WebhookEvent.id)
    with transaction():
        is_new = db.session.scalar(new) is not None
        if is_new:
            defer(process, event_id=row["id"])
    return is_new


def _is_same(known: WebhookEvent, event: Event, payload: str) -> bool:
    """Tell whether an event that came again says the same; how often it is still to come may differ."""
    named = (known.type, known.livemode, known.object_type, known.object_ref)
    if named != (event.type, event.livemode, event.object_type, event.object_ref):
        return False
    return known.payload is None or _object(known.payload) == _object(payload)


def _object(payload: str) -> Any:
    return json.loads(payload)["data"]["object"]


@task
def process(*, event_id: str) -> None:
    """Look at the object that an event names and apply what it is now.

    Raises:
        GatewayError: the event stays `failed`, and the job comes again.
    """
    event = _begin(UUID(event_id))
    if event is None:
        return
    if (event.provider, event.livemode) != (settings.payments.provider, settings.payments.livemode):
        logger.error("webhook_event_of_another_mode", extra={"event_id": event.event_id})
        _end(event, EventStatus.IGNORED, error="other_mode")
        return
    try:
        ours = _apply(event)
    except Exception as error:
        _end(event, EventStatus.FAILED, error=type(error).__name__)
        raise
    _end(event, EventStatus.PROCESSED if ours else EventStatus.IGNORED)


def retry(event_id: UUID) -> WebhookEvent:
    """Act on an event again that could not be acted on.

    Raises:
        NotFound, AlreadyProcessed.
    """
    again = update(WebhookEvent).where(WebhookEvent.id == event_id, WebhookEvent.status.in_(WAITING))
    with transaction():
        event: WebhookEvent | None = db.session.scalar(
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


def purge_payloads() -> None:
    """Delete what events said a long time ago; that they came is kept."""
    old = WebhookEvent.created_at < utcnow() - KEEP_PAYLOADS
    with transaction():
        db.session.execute(update(WebhookEvent).where(old, WebhookEvent.payload.is_not(None)).values(payload=None))


@metrics.measured("webhook_events_waiting", "Webhook events that were not acted on yet.")
def _count_waiting() -> float:
    return db.session.scalar(select(func.count()).where(WebhookEvent.status.in_(WAITING))) or 0


def _begin(event_id: UUID) -> WebhookEvent | None:
    waiting = update(WebhookEvent).where(WebhookEvent.id == event_id, WebhookEvent.status.in_(WAITING))
    with transaction():
        event: WebhookEvent | None = db.session.scalar(
            waiting.values(attempts=WebhookEvent.attempts + 1).returning(WebhookEvent),
            execution_options={"populate_existing": True},
        )
    return event


def _end(event: WebhookEvent, status: EventStatus, *, error: str | None = None) -> None:
    done = None if status is EventStatus.FAILED else utcnow()
    mine = update(WebhookEvent).where(WebhookEvent.id == event.id, WebhookEvent.status.in_(WAITING))
    values = {"status": status, "last_error": error, "processed_at": done}
    metrics.EVENTS.labels(status).inc()
    with transaction():
        counted = db.session.scalar(mine.values(values).returning(WebhookEvent.id)) is not None
        if counted and status is EventStatus.PROCESSED and event.type == _FAILED_ATTEMPT:
            _count_attempt(event.object_ref)


def _count_attempt(ref: str) -> None:
    """Count a payment that was declined; at the last of its attempts it is given up (card testing)."""
    tried = update(Payment).where(Payment.provider_ref == ref).values(attempts=Payment.attempts + 1)
    for payment_id, attempts in db.session.execute(tried.returning(Payment.id, Payment.attempts)).all():
        if attempts >= settings.payments.max_attempts:
            defer(cancel_tried, payment_id=payment_id)


def _apply(event: WebhookEvent) -> bool:
    """Apply what the event's object is now; False when it is none of ours.

    Raises:
        UnknownPayment: it says that it is, and it is not there yet.
    """
    gateway, actor = current_gateway(), f"webhook:{event.event_id}"
    give_back()
    try:
        match event.object_type:
            case "payment_intent":
                return _apply_payment(event.object_ref, actor)
            case "charge":
                refunds = list(gateway.list_refunds(event.object_ref))
                return _apply_each(event.object_ref, apply_refund, refunds, actor)
            case "refund":
                refund = gateway.retrieve_refund(event.object_ref)
                return _apply_each(refund.payment_ref, apply_refund, [refund], actor)
            case "dispute":
                dispute = gateway.retrieve_dispute(event.object_ref)
                return _apply_each(dispute.payment_ref, apply_dispute, [dispute], actor)
            case _:
                return False
    except NoSuchObject:
        return False


def _apply_payment(ref: str, actor: str) -> bool:
    give_back()
    snapshot = current_gateway().retrieve_payment(ref)
    if snapshot.payment_id is None:
        return False
    if db.session.scalar(select(Payment.id).where(Payment.id == snapshot.payment_id)) is None:
        raise UnknownPayment(ref)
    apply_payment(snapshot.payment_id, snapshot, actor=actor)
    return True


def _apply_each(payment_ref: str, apply: Callable[..., object], snapshots: list[Any], actor: str) -> bool:
    """Apply what follows on a payment, once its success is known; False when the payment is not ours."""
    paid = select(Payment.id).where(Payment.provider_ref == payment_ref, Payment.status == PaymentStatus.SUCCEEDED)
    if db.session.scalar(paid) is None and not _apply_payment(payment_ref, actor):
        return False
    for snapshot in snapshots:
        apply(snapshot, actor=actor)
    return True
