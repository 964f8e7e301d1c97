"""What staff see beside payments: webhook events, the timeline, and the books."""

import pytest
from sqlalchemy import select, update

from project.database import db, transaction
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.staff_schemas import DisputeOut, EventOut, LedgerEntryOut, TimelineEntryOut
from tests.payments.asking import buy, code, confirm, data, purchase, refund


@pytest.mark.parametrize(
    "path",
    [
        "/v1/payments/disputes",
        "/v1/payments/events",
        "/v1/payments/0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f/timeline",
        "/v1/ledger/entries",
        "/v1/ledger/balances",
        "/v1/ledger/export.csv",
    ],
)
def test_these_are_for_staff(client, as_user, path):
    assert client.get(path, headers=as_user()).status_code == 403


def test_an_event_is_listed_with_what_became_of_it(client, as_user, as_staff, price_id, run_jobs):
    confirm(client, buy(client, as_user(), price_id))
    assert data(client.get("/v1/payments/events", headers=as_staff)) == []
    run_jobs()
    events = data(client.get("/v1/payments/events?status=processed&sort=created_at", headers=as_staff))
    assert [event["type"] for event in events] == ["payment_intent.created", "payment_intent.succeeded"]
    assert set(events[0]) == set(EventOut().fields)
    assert "payload" not in events[0]
    assert data(client.get("/v1/payments/events?status=failed", headers=as_staff)) == []


def test_an_event_that_could_not_be_acted_on_is_acted_on_again(client, as_user, as_staff, price_id, run_jobs, in_app):
    ann = as_user()
    made = buy(client, ann, price_id)
    confirm(client, made)
    run_jobs()

    def spoil():
        with transaction():
            db.session.execute(update(WebhookEvent).values(status=EventStatus.FAILED, last_error="OutcomeUnknown"))
        return [str(event) for event in db.session.scalars(select(WebhookEvent.id))]

    for event_id in in_app(spoil):
        retried = client.post(f"/v1/payments/events/{event_id}/retry", headers=as_staff)
        assert (retried.status_code, data(retried)["status"]) == (200, "received")
        run_jobs()
        again = client.post(f"/v1/payments/events/{event_id}/retry", headers=as_staff)
        assert (again.status_code, code(again)) == (409, "already_processed")
    assert len(data(client.get("/v1/ledger/entries", headers=as_staff))) == 1


def test_the_timeline_tells_who_did_what(client, as_user, as_staff, price_id):
    paid = purchase(client, as_user(), price_id)
    refund(client, as_staff, paid, amount=1)
    entries = data(client.get(f"/v1/payments/{paid['id']}/timeline?sort=created_at", headers=as_staff))
    assert set(entries[0]) == set(TimelineEntryOut().fields)
    told = [(entry["type"], entry["actor"]) for entry in entries]
    assert told == [
        ("created", "user"),
        ("status", "user"),
        ("status", "user"),
        ("refund_asked", f"staff:{as_staff.user.id}"),
        ("refund", f"staff:{as_staff.user.id}"),
    ]


def test_the_books_show_what_came_and_what_went(client, as_user, as_staff, price_id):
    paid = purchase(client, as_user(), price_id)
    other = purchase(client, as_user(), price_id)
    refund(client, as_staff, paid, amount=300)

    entries = data(client.get("/v1/ledger/entries?sort=created_at", headers=as_staff))
    assert [(entry["kind"], entry["amount"]) for entry in entries] == [
        ("capture", 1000),
        ("capture", 1000),
        ("refund", 300),
    ]
    assert set(entries[0]) == set(LedgerEntryOut().fields)
    balances = data(client.get("/v1/ledger/balances", headers=as_staff))
    assert {one["account"]: one["balance"] for one in balances} == {
        "assets:provider:sandbox": 1700,
        "income:payments": -2000,
        "contra:refunds": 300,
    }
    assert sum(one["balance"] for one in balances) == 0

    by_query = {
        f"payment_id={other['id']}": ["capture"],
        "account=contra:refunds": ["refund"],
        f"from={entries[1]['created_at']}": ["refund", "capture"],
        f"to={entries[1]['created_at']}": ["capture"],
        f"from={entries[1]['created_at']}&to={entries[1]['created_at']}": [],
    }
    for query, kinds in by_query.items():
        found = data(client.get(f"/v1/ledger/entries?{query}", headers=as_staff))
        assert [entry["kind"] for entry in found] == kinds, query
    of_one = data(client.get(f"/v1/ledger/balances?payment_id={other['id']}&account=income:payments", headers=as_staff))
    assert of_one == [{"account": "income:payments", "currency": "USD", "balance": -1000}]


def test_disputes_are_mirrored_and_an_inquiry_moves_no_money(client, as_user, as_staff, as_admin, price_id, run_jobs):
    asked = purchase(client, as_user(), price_id, "pm_card_createDisputeInquiry")
    client.post("/v1/sandbox/advance", headers=as_admin)
    run_jobs()
    [dispute] = data(client.get(f"/v1/payments/disputes?payment_id={asked['id']}", headers=as_staff))
    assert set(dispute) == set(DisputeOut().fields)
    assert (dispute["status"], dispute["funds_withdrawn"]) == ("warning_needs_response", False)
    assert data(client.get(f"/v1/payments/{asked['id']}", headers=as_staff))["dispute_status"] == "inquiry"
    assert [entry["kind"] for entry in data(client.get("/v1/ledger/entries", headers=as_staff))] == ["capture"]
