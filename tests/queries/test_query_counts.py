"""How many statements each route sends to the database when it succeeds, and that a list sends as many however long.

The numbers are exact, so that a statement more shows in a review; whoever needs one fewer writes the lower number here.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Table, UniqueConstraint, select
from sqlalchemy import insert as plain_insert

from project.audit import AuditEvent
from project.auth.models import Session
from project.database import Base, db, transaction, uuid7
from project.files.models import File, ShareLink
from project.payments.journal import LedgerEntry, TimelineEntry, WebhookEvent
from project.payments.models import Dispute, Payment, Price, Refund
from project.users.models import User
from tests.payments import asking
from tests.queries.calls import CALLS, routes_of
from tests.queries.scene import Call, Scene

pytestmark = pytest.mark.parametrize("app", ["postgresql"], indirect=True)

# Of each route: statements, and how many transactions are written around some of them. A transaction costs two more
# trips to the database, BEGIN and COMMIT; every other statement is by itself. Where a token is sent, one statement asks
# for the session and the account. What the built-in provider does is in here as well.
COUNTS: dict[str, tuple[int, int]] = {
    "GET /": (0, 0),
    "GET /docs": (0, 0),
    "GET /docs/assets/{name}": (0, 0),
    "GET /errors": (0, 0),
    "GET /healthz": (0, 0),
    "GET /metrics": (5, 0),
    "GET /openapi.json": (0, 0),
    "GET /readyz": (3, 0),
    "POST /v1/auth/register": (1, 1),
    "POST /v1/auth/verify-email": (4, 1),
    "POST /v1/auth/resend-verification": (1, 1),
    "POST /v1/auth/login": (5, 1),
    "POST /v1/auth/refresh": (3, 1),
    "POST /v1/auth/logout": (3, 1),
    "GET /v1/auth/sessions": (2, 0),
    "DELETE /v1/auth/sessions": (3, 1),
    "DELETE /v1/auth/sessions/{session_id}": (3, 1),
    "POST /v1/auth/forgot-password": (1, 1),
    "POST /v1/auth/reset-password": (6, 1),
    "POST /v1/auth/change-password": (7, 1),
    "POST /v1/auth/change-email": (5, 1),
    "POST /v1/auth/confirm-email": (6, 1),
    "GET /v1/users/me": (1, 0),
    "PATCH /v1/users/me": (3, 1),
    "POST /v1/users/me/erase": (21, 1),
    "GET /v1/users": (2, 0),
    "POST /v1/users": (4, 1),
    "GET /v1/users/{user_id}": (2, 0),
    "PATCH /v1/users/{user_id}": (3, 1),
    "DELETE /v1/users/{user_id}": (21, 1),
    "DELETE /v1/users/{user_id}/sessions": (3, 1),
    "POST /v1/users/{user_id}/invitation": (4, 1),
    "GET /v1/audit-events": (2, 0),
    "GET /v1/files/config": (1, 0),
    "GET /v1/files/usage": (2, 0),
    "GET /v1/files/quotas/{user_id}": (3, 0),
    "PUT /v1/files/quotas/{user_id}": (6, 1),
    "POST /v1/files": (8, 2),
    "POST /v1/files/raw": (7, 2),
    "POST /v1/files/direct": (6, 1),
    "POST /v1/files/{file_id}/complete": (6, 2),
    "GET /v1/files": (2, 0),
    "GET /v1/files/{file_id}": (2, 0),
    "PATCH /v1/files/{file_id}": (2, 1),
    "DELETE /v1/files/{file_id}": (4, 1),
    "GET /v1/files/{file_id}/content": (2, 0),
    "GET /v1/files/{file_id}/thumbnail": (5, 1),
    "POST /v1/files/{file_id}/signed-url": (2, 0),
    "POST /v1/files/{file_id}/shares": (2, 0),
    "GET /v1/files/{file_id}/shares": (3, 0),
    "DELETE /v1/files/{file_id}/shares/{share_id}": (3, 1),
    "GET /v1/shares/{token}": (2, 1),
    "GET /v1/prices": (1, 0),
    "POST /v1/prices": (3, 1),
    "GET /v1/prices/{price_id}": (1, 0),
    "PATCH /v1/prices/{price_id}": (3, 1),
    "GET /v1/payments/config": (1, 0),
    "POST /v1/payments": (19, 6),
    "GET /v1/payments": (2, 0),
    "GET /v1/payments/{payment_id}": (2, 0),
    "GET /v1/payments/{payment_id}/client-secret": (5, 1),
    "POST /v1/payments/{payment_id}/cancel": (18, 6),
    "POST /v1/payments/{payment_id}/capture": (23, 6),
    "POST /v1/payments/{payment_id}/refunds": (31, 6),
    "GET /v1/payments/{payment_id}/refunds": (3, 0),
    "GET /v1/payments/{payment_id}/receipt": (3, 0),
    "GET /v1/payments/{payment_id}/timeline": (3, 0),
    "GET /v1/payments/disputes": (2, 0),
    "GET /v1/payments/events": (2, 0),
    "POST /v1/payments/events/{event_id}/retry": (3, 1),
    "POST /v1/payments/webhooks/sandbox": (3, 1),
    "POST /v1/payments/webhooks/stripe": (3, 1),
    "GET /v1/ledger/entries": (2, 0),
    "GET /v1/ledger/balances": (2, 0),
    "GET /v1/ledger/export.csv": (2, 0),
    "GET /v1/sandbox/payment-methods": (0, 0),
    "POST /v1/sandbox/payment-intents/{ref}/confirm": (5, 1),
    "GET /v1/sandbox/payment-intents/{ref}/authenticate": (1, 0),
    "POST /v1/sandbox/payment-intents/{ref}/authenticate": (5, 1),
    "POST /v1/sandbox/faults": (2, 1),
    "POST /v1/sandbox/advance": (5, 0),
}


def _dispute(scene: Scene, _call: Call) -> None:
    payment_id = UUID(scene.paid().rpartition("/")[2])
    values: dict[str, Any] = {"amount": 1, "currency": "USD", "reason": "general", "status": "won"}

    def add() -> None:
        with transaction():
            db.session.add(Dispute(payment_id=payment_id, provider_ref="dp_1", **values))

    scene.in_app(add)


def _paid(scene: Scene, _call: Call) -> None:
    scene.paid()
    scene.run_jobs()


def _refund(scene: Scene, call: Call) -> None:
    scene.send("POST", {"path": call["path"], "headers": scene.staff | asking.key(), "json": {"amount": 1}})


# Of each list: what it shows, and how to make the first of them.
LISTS: dict[str, tuple[type[Base], Callable[[Scene, Call], object]]] = {
    "GET /v1/auth/sessions": (Session, lambda *_: None),
    "GET /v1/users": (User, lambda *_: None),
    "GET /v1/audit-events": (AuditEvent, lambda scene, _: scene.send("PATCH", CALLS["PATCH /v1/users/me"](scene))),
    "GET /v1/files": (File, lambda scene, _: scene.file()),
    "GET /v1/files/{file_id}/shares": (ShareLink, lambda scene, call: scene.send("POST", {**call, "json": {}})),
    "GET /v1/prices": (Price, lambda scene, _: scene.price()),
    "GET /v1/payments": (Payment, lambda scene, _: scene.payment()),
    "GET /v1/payments/{payment_id}/refunds": (Refund, _refund),
    "GET /v1/payments/{payment_id}/timeline": (TimelineEntry, lambda *_: None),
    "GET /v1/payments/disputes": (Dispute, _dispute),
    "GET /v1/payments/events": (WebhookEvent, _paid),
    "GET /v1/ledger/entries": (LedgerEntry, _paid),
}
# These answer with lists that have no end of rows behind them, or are no pages.
OTHER_LISTS = {"GET /v1/ledger/balances", "GET /v1/sandbox/payment-methods"}


def _copy(model: type[Base], count: int) -> None:
    """Write more rows like the newest one, with other values where they have to be unique."""
    table = model.__table__
    assert isinstance(table, Table)
    row = dict(db.session.execute(select(table).order_by(table.c.id.desc()).limit(1)).mappings().one())
    rules: list[Any] = [rule for rule in table.constraints if isinstance(rule, UniqueConstraint)]
    rules += [index for index in table.indexes if index.unique]
    unique = {column.name for rule in rules for column in rule.columns if isinstance(row[column.name], str)}
    with transaction():
        for number in range(count):
            other = {name: f"{number}-{row[name]}"[:64] for name in unique}
            db.session.execute(plain_insert(table).values({**row, **other, "id": uuid7()}))


def test_every_route_has_its_number(app):
    assert routes_of(app) == set(CALLS) == set(COUNTS)


@pytest.mark.parametrize("route", CALLS)
def test_a_route_sends_so_many_statements(scene, route):
    call = CALLS[route](scene)
    answer, sent = scene.watch(route, call)
    assert sent.counts == COUNTS[route], "\n".join(statement for statement, _ in sent.statements)
    if answer.is_json and "meta" in answer.json:
        assert route in LISTS or route in OTHER_LISTS


@pytest.mark.parametrize("route", LISTS)
def test_a_list_sends_as_many_statements_for_fifty_rows_as_for_one(scene, route):
    call = CALLS[route](scene)
    model, make_first = LISTS[route]
    make_first(scene, call)
    call["query_string"] = {"limit": 100}
    before, few = scene.watch(route, call)
    scene.in_app(_copy, model, 49)
    after, many = scene.watch(route, call)
    assert len(after.json["data"]) - len(before.json["data"]) == 49
    assert len(before.json["data"]) > 0
    assert few.counts == many.counts
