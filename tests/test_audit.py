from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode
from uuid import UUID

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError

from project import audit
from project.audit import AuditEvent
from project.database import db, transaction
from project.security import Role

EVENTS = "/v1/audit-events"
NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)
ANN, BEN, ITEM = UUID(int=1), UUID(int=2), UUID(int=3)
FIELDS = ["action", "actor_id", "at", "data", "id", "ip", "request_id", "target_id", "target_type"]


def write_five() -> None:
    """Five events a second apart, named after the numbers from one on."""
    actors_and_targets = [(ANN, ITEM), (ANN, BEN), (BEN, ITEM), (None, ANN), (ANN, None)]
    with transaction():
        for number, (actor_id, target_id) in enumerate(actors_and_targets):
            db.session.add(
                AuditEvent(
                    action="odd" if number % 2 == 0 else "even",
                    at=NOON + timedelta(seconds=number),
                    actor_id=actor_id,
                    target_type="user" if target_id else None,
                    target_id=target_id,
                    data={"number": number + 1},
                )
            )


@pytest.fixture
def five(in_app):
    in_app(write_five)


@pytest.fixture
def numbers(client, five, as_admin):
    """The numbers of the events that a query finds, in its order."""

    def find(**query: object) -> list[int]:
        response = client.get(f"{EVENTS}?{urlencode({'sort': 'created_at', **query})}", headers=as_admin)
        assert response.status_code == 200, response.json
        return [event["data"]["number"] for event in response.json["data"]]

    return find


def test_the_log_needs_a_token(client, five):
    response = client.get(EVENTS)
    assert (response.status_code, response.json["code"]) == (401, "token_required")


@pytest.mark.parametrize("role", [Role.USER, Role.STAFF])
@pytest.mark.parametrize("query", ["", "?limit=0", "?actor_id=self"])
def test_the_log_is_for_admins(client, five, as_user, role, query):
    caller = as_user(role=role)
    response = client.get(EVENTS + query.replace("self", str(caller.user.id)), headers=caller)
    assert (response.status_code, response.json["code"]) == (403, "forbidden")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_log_has_nothing_to_write_to(client, as_admin, method):
    assert client.open(EVENTS, method=method, headers=as_admin, json={}).status_code == 405
    assert client.open(f"{EVENTS}/{ITEM}", method=method, headers=as_admin, json={}).status_code == 404


def test_an_event_has_exactly_these_fields(client, five, as_admin):
    event = client.get(f"{EVENTS}?limit=1&sort=created_at", headers=as_admin).json["data"][0]
    assert sorted(event) == FIELDS
    assert UUID(event.pop("id")).version == 7
    assert event == {
        "at": "2030-01-31T12:00:00Z",
        "action": "odd",
        "actor_id": str(ANN),
        "target_type": "user",
        "target_id": str(ITEM),
        "ip": None,
        "request_id": None,
        "data": {"number": 1},
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"sort": "-created_at"}, [5, 4, 3, 2, 1]),
        ({"actor_id": ANN}, [1, 2, 5]),
        ({"actor_id": BEN}, [3]),
        ({"actor_id": ITEM}, []),
        ({"target_id": ITEM}, [1, 3]),
        ({"target_id": ANN}, [4]),
        ({"actor_id": ANN, "target_id": BEN}, [2]),
        ({"action": "even"}, [2, 4]),
        ({"action": "ev"}, []),
        ({"action": "%"}, []),
        ({"from": "2030-01-31T12:00:02Z"}, [3, 4, 5]),
        ({"from": "2030-01-31T12:00:02.000001Z"}, [4, 5]),
        ({"to": "2030-01-31T12:00:02Z"}, [1, 2]),
        ({"to": "2030-01-31T12:00:02.000001Z"}, [1, 2, 3]),
        ({"from": "2030-01-31T12:00:01Z", "to": "2030-01-31T12:00:03Z"}, [2, 3]),
        ({"from": "2030-01-31T13:00:02+01:00", "to": "2030-01-31T10:00:04-02:00"}, [3, 4]),
        ({"from": "2030-01-31T12:00:02Z", "to": "2030-01-31T12:00:02Z"}, []),
        ({"from": "2030-01-31T12:00:03Z", "to": "2030-01-31T12:00:01Z"}, []),
        ({"action": "odd", "actor_id": ANN, "from": "2030-01-31T12:00:01Z"}, [5]),
    ],
)
def test_a_query_finds_what_fits_all_of_its_filters(numbers, query, found):
    assert numbers(**query) == found


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("actor_id=1", "actor_id", "invalid_format"),
        ("actor_id=", "actor_id", "invalid_format"),
        ("target_id=00000000-0000-0000-0000-00000000000A", "target_id", "invalid_format"),
        ("from=yesterday", "from", "invalid_format"),
        ("to=2030-01-31T12:00:00", "to", "invalid_format"),
        ("to=2030-01-31T23:59:60Z", "to", "invalid_format"),
        ("action=", "action", "invalid_length"),
        ("action=" + "a" * 65, "action", "invalid_length"),
        ("after=2030-01-31T12:00:00Z", "after", "unknown_field"),
        ("ip=127.0.0.1", "ip", "unknown_field"),
        ("sort=action", "sort", "invalid_choice"),
        ("limit=101", "limit", "out_of_range"),
        ("action=a&action=b", "action", "repeated_parameter"),
    ],
)
def test_a_wrong_parameter_is_refused_and_named(client, as_admin, query, pointer, code):
    response = client.get(f"{EVENTS}?{query}", headers=as_admin)
    assert (response.status_code, response.json["code"]) == (422, "validation_error")
    assert [(error["pointer"], error["code"]) for error in response.json["errors"]] == [(f"/query/{pointer}", code)]


def test_the_pages_show_each_event_once_the_newest_first(client, five, as_admin):
    seen, path = [], f"{EVENTS}?limit=2&include_total=true&to=2030-02-01T00:00:00Z"
    while path:
        response = client.get(path, headers=as_admin)
        assert response.json["meta"]["total"] == 5
        seen.append([event["data"]["number"] for event in response.json["data"]])
        path = response.headers.get("Link", "").partition(">")[0].removeprefix("<http://localhost")
    assert seen == [[5, 4], [3, 2], [1]]


@pytest.mark.parametrize("query", ["", "?limit=2&to=2030-01-31T12:00:04Z", "?limit=2&action=odd"])
def test_a_cursor_of_another_query_or_admin_is_refused(client, five, as_admin, as_user, query):
    cursor = client.get(f"{EVENTS}?limit=2", headers=as_admin).json["meta"]["next_cursor"]
    headers, path = (as_admin, query) if query else (as_user(role=Role.ADMIN), "?limit=2")
    response = client.get(f"{EVENTS}{path}&cursor={cursor}", headers=headers)
    assert (response.status_code, response.json["code"]) == (400, "invalid_cursor")


STATEMENTS = {
    "update": update(AuditEvent).values(action="nothing"),
    "update of nothing": update(AuditEvent).values(action=AuditEvent.action),
    "update of one": update(AuditEvent).where(AuditEvent.action == "odd").values(actor_id=None),
    "delete": delete(AuditEvent),
    "delete of one": delete(AuditEvent).where(AuditEvent.actor_id == BEN),
    "upsert": text(
        "INSERT INTO audit_events (id, at, action, data) SELECT id, at, 'nothing', data FROM audit_events WHERE true"
        " ON CONFLICT (id) DO UPDATE SET action = excluded.action"
    ),
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_no_statement_changes_or_deletes_an_event(session, statement):
    write_five()
    before = session.execute(select(AuditEvent.__table__).order_by(AuditEvent.at)).all()
    with pytest.raises(DBAPIError, match="append-only"), transaction():
        session.execute(statement)
    assert session.execute(select(AuditEvent.__table__).order_by(AuditEvent.at)).all() == before


def test_no_event_is_replaced_on_sqlite(session):
    if db.engine.dialect.name != "sqlite":
        pytest.skip("only SQLite has INSERT OR REPLACE")
    write_five()
    replace = (
        "INSERT OR REPLACE INTO audit_events (id, at, action, data) SELECT id, at, 'nothing', data FROM audit_events"
    )
    with pytest.raises(DBAPIError, match="append-only"), transaction():
        session.execute(text(replace))


@pytest.mark.parametrize("change", [lambda event: setattr(event, "data", {}), db.session.delete])
def test_no_event_in_hand_is_changed_or_deleted(session, change):
    write_five()
    with pytest.raises(DBAPIError, match="append-only"), transaction():
        change(session.scalars(select(AuditEvent)).first())


def test_an_event_exists_only_with_all_of_its_transaction(session):
    @transaction()
    def record_and_fail() -> None:
        audit.record("nothing_happened", actor_id=ANN)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        record_and_fail()
    assert session.scalars(select(AuditEvent)).all() == []


def test_outside_of_a_request_an_event_comes_from_nowhere(session):
    with transaction():
        audit.record("something_happened", actor_id=None, colour="green")
    (event,) = session.scalars(select(AuditEvent)).all()
    assert (event.action, event.actor_id, event.target_type, event.target_id) == (
        "something_happened",
        None,
        None,
        None,
    )
    assert (event.ip, event.request_id, event.data) == (None, None, {"colour": "green"})
    assert datetime.now(UTC) - timedelta(minutes=1) < event.at <= datetime.now(UTC)
