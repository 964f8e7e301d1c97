"""Delivers webhook events, signed as Stripe signs them; those that are not taken come again."""

import importlib
from collections.abc import Callable
from contextvars import Context
from datetime import datetime, timedelta
from typing import Any

from flask import current_app
from sqlalchemy import select, update
from werkzeug.test import EnvironBuilder, run_wsgi_app

from project import signing
from project.config import settings
from project.database import db, give_back, transaction, utcnow
from project.jobs import task
from project.payments.sandbox.faults import Fault
from project.payments.sandbox.models import FRESH, SandboxEvent

# Posts a body with its Stripe-Signature to the webhook's route; returns the status of the answer.
Send = Callable[[bytes, str], int]

WEBHOOK_PATH = "/v1/payments/webhooks/sandbox"
MAX_ATTEMPTS = 12
FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(hours=1)


def signing_secret() -> str:
    """Return the secret that the sandbox signs with; whoever listens to it asks here."""
    return f"whsec_sbx_{signing.digest('webhooks of the sandbox', b'').hex()}"


@task
def deliver() -> None:
    """Deliver what is due; a job, made with each event."""
    if settings.payments.provider == "sandbox":
        deliver_due(post)


def post(body: bytes, signature: str) -> int:
    """Post a webhook to its route, through all of the application and without a socket; return the status.

    Over HTTP a server with one worker would wait for itself.
    """
    builder = EnvironBuilder(
        path=WEBHOOK_PATH,
        base_url=settings.public_url,
        method="POST",
        data=body,
        content_type="application/json",
        headers=[("Stripe-Signature", signature), ("User-Agent", "sandbox")],
        environ_base={"REMOTE_ADDR": "127.0.0.1"},
    )
    application: Any = current_app
    # In a context of its own: what the request binds, for the log, is not to reach whoever delivers.
    answer = Context().run(run_wsgi_app, application.wsgi_app, builder.get_environ(), buffered=True)
    return int(answer[1].split()[0])


def deliver_due(send: Send, *, until: datetime | None = None) -> int:
    """Deliver the events that are due, in their order; return how many were taken.

    Several may do this at once: an event is claimed by one, for the time until it comes again.
    """
    until = until or utcnow()
    refused: set[str] = set()
    delivered = 0
    while event := _claim(until, refused):
        if event.fault == Fault.DROP_WEBHOOK:
            _done(event)
        elif _deliver(event, send):
            _done(event)
            delivered += 1
        else:
            refused.add(event.id)
    return delivered


def _claim(until: datetime, refused: set[str]) -> SandboxEvent | None:
    """Return the next event that nobody else delivers now."""
    waiting = (SandboxEvent.delivered_at.is_(None), SandboxEvent.due_at <= until, SandboxEvent.attempts < MAX_ATTEMPTS)
    due = select(SandboxEvent.id, SandboxEvent.attempts).where(*waiting, SandboxEvent.id.not_in(refused))
    for event_id, attempts in db.session.execute(due.order_by(SandboxEvent.due_at, SandboxEvent.id).limit(20)).all():
        mine = (SandboxEvent.id == event_id, SandboxEvent.attempts == attempts, SandboxEvent.delivered_at.is_(None))
        again_at = utcnow() + min(FIRST_WAIT * 2**attempts, LONGEST_WAIT)
        claim = update(SandboxEvent).where(*mine).values(attempts=attempts + 1, due_at=again_at)
        with transaction():
            event: SandboxEvent | None = db.session.scalar(claim.returning(SandboxEvent), execution_options=FRESH)
        if event is not None:
            return event
    return None


def _deliver(event: SandboxEvent, send: Send) -> bool:
    """Send an event, with what is to go wrong with it; tell whether it was taken."""
    secret = signing_secret()
    if event.fault == Fault.BAD_SIGNATURE and event.attempts == 1:
        secret = f"{secret} of somebody else"
    # By name, for the reason that gateway.py gives.
    stripe: Any = importlib.import_module("stripe")
    signature: str = stripe.WebhookSignature.generate_signature_header(event.payload, secret)
    give_back()
    statuses = [send(event.payload.encode(), signature) for _ in range(_times(event))]
    return all(status // 100 == 2 for status in statuses)


def _times(event: SandboxEvent) -> int:
    return 2 if event.fault == Fault.DUPLICATE_WEBHOOK else 1


def _done(event: SandboxEvent) -> None:
    done = update(SandboxEvent).where(SandboxEvent.id == event.id).values(delivered_at=utcnow())
    with transaction():
        db.session.execute(done)
