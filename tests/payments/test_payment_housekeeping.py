"""What is forgotten of payments when its time is over, and what is kept for good."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from project.database import Base, db, transaction, utcnow
from project.housekeeping import clean_up
from project.payments import inbox
from project.payments.journal import EventStatus, LedgerEntry, TimelineEntry, WebhookEvent
from project.payments.models import Payment, PaymentStatus
from project.payments.sandbox.delivery import MAX_ATTEMPTS, deliver_due
from project.payments.sandbox.models import SandboxEvent, SandboxIntent, SandboxKey
from tests.payments import paying


def count(model: type[Base]) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def age(model: type[Any], by: timedelta) -> None:
    """Make all rows of a kind older."""
    with transaction():
        db.session.execute(update(model).values(created_at=utcnow() - by))


@pytest.fixture
def payment(session) -> Payment:
    """A payment that was made, whose events have come and were acted on."""
    made = paying.make_payment()
    paying.pay(made)
    deliver_due(inbox.take)
    for event_id in session.scalars(select(WebhookEvent.id)).all():
        inbox.process(event_id=str(event_id))
    return made


def test_what_an_event_said_is_forgotten_after_ninety_days_and_that_it_came_is_not(session, payment):
    age(WebhookEvent, timedelta(days=90, minutes=1))

    clean_up()

    events = session.scalars(select(WebhookEvent), execution_options={"populate_existing": True}).all()
    assert [(event.payload, event.status) for event in events] == [(None, EventStatus.PROCESSED)] * 2
    assert [event.object_ref for event in events] == [payment.provider_ref] * 2


def test_what_an_event_said_is_kept_for_ninety_days(session, payment):
    age(WebhookEvent, timedelta(days=89, hours=23))

    clean_up()

    assert None not in session.scalars(select(WebhookEvent.payload)).all()


def changed() -> list[datetime]:
    return list(db.session.scalars(select(WebhookEvent.updated_at).order_by(WebhookEvent.id)))


def test_what_was_forgotten_is_not_forgotten_again(session, payment):
    age(WebhookEvent, timedelta(days=91))
    clean_up()
    before = changed()

    clean_up()

    assert changed() == before


def test_the_sandbox_forgets_events_after_a_month(session, payment):
    age(SandboxEvent, timedelta(days=29))
    clean_up()
    assert count(SandboxEvent) == 2

    age(SandboxEvent, timedelta(days=31))
    clean_up()
    assert count(SandboxEvent) == 0


def test_the_sandbox_keeps_an_event_that_is_still_to_be_delivered(session):
    paying.make_payment()
    age(SandboxEvent, timedelta(days=31))
    clean_up()
    assert count(SandboxEvent) == 1

    with transaction():
        session.execute(update(SandboxEvent).values(attempts=MAX_ATTEMPTS))
    clean_up()
    assert count(SandboxEvent) == 0


def test_the_sandbox_forgets_keys_after_a_day(session, payment):
    age(SandboxKey, timedelta(hours=23))
    clean_up()
    assert count(SandboxKey) == 1

    age(SandboxKey, timedelta(hours=25))
    clean_up()
    assert count(SandboxKey) == 0


def test_what_has_money_in_it_is_kept_for_good(session, payment):
    for model in (WebhookEvent, SandboxEvent, SandboxKey, Payment, SandboxIntent):
        age(model, timedelta(days=4000))

    clean_up()

    assert paying.get(payment).status is PaymentStatus.SUCCEEDED
    assert paying.booked(payment) == {"capture": 1000}
    assert min(count(LedgerEntry), count(TimelineEntry), count(SandboxIntent), count(WebhookEvent)) > 0


def test_the_command_does_the_same(app, in_app):
    def prepare() -> None:
        paying.paid()
        deliver_due(inbox.take)
        age(WebhookEvent, timedelta(days=91))

    in_app(prepare)

    result = app.test_cli_runner().invoke(args=["housekeeping"])

    assert result.exit_code == 0, result.output
    assert set(in_app(lambda: db.session.scalars(select(WebhookEvent.payload)).all())) == {None}
