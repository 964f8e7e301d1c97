"""No list and no lookup reads a table: each statement of the application is carried out among a million rows.

TEST_ROWS says how many rows there are instead. What counts is how much PostgreSQL looks at, and not how long it takes.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import procrastinate.sql
import psycopg
import pytest
from flask import Flask
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from project import create_app, housekeeping
from project.config import settings
from project.database import db
from project.extensions import limiter
from project.files import quota, service, sweep
from project.payments import comparing, waiting
from project.payments.gateway_types import GatewayError
from project.queues import current_queue
from project.security import Role
from project.users import service as users
from project.users.models import User
from tests.conftest import ENV, Caller
from tests.queries.calls import CALLS
from tests.queries.counting import watched
from tests.queries.lists import LISTS, Listing
from tests.queries.plans import Plan, explain, explain_for_any
from tests.queries.scene import Scene
from tests.queries.seeding import HEAVY, STAFF, many_rows, numbered

ROWS = int(os.environ.get("TEST_ROWS", "1000000"))
# What a statement may look at, in rows and in pages of 8 KiB, however many there are: some hundredths of a second.
ENOUGH = 5000
# All that one account has, which is one of fifty; by a bitmap it is looked at twice, as entries and as rows.
OF_ONE_ACCOUNT = ROWS // 50 * 2 + ENOUGH
# Once in an hour Procrastinate looks at the jobs that it keeps: those that were given up within a week.
OF_THE_LIBRARY = procrastinate.sql.queries["delete_old_jobs"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.no_cover,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("many rows"),
]

# Where a page begins: (created_at, id) < (%(param_1)s::TIMESTAMP WITH TIME ZONE, %(param_2)s::UUID)
BEGINS = re.compile(r"[<>] \(%\((\w+)\)s::[^,]+, %\((\w+)\)s::UUID\)")
Statement = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The application on a database of many rows."""
    environment = {**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("many"))}
    with many_rows(ROWS, environment) as url:
        application = create_app({**environment, "DATABASE_URL": url})
        yield application
        with application.app_context():
            db.engine.dispose()


@pytest.fixture
def app(many: Flask) -> Flask:
    """That application, for the fixtures that want one."""
    limiter.init_app(many)
    many.extensions["outbox"].clear()
    return many


@pytest.fixture
def planner(app: Flask) -> Iterator[psycopg.Connection]:
    """A connection that carries statements out to see how, and undoes them."""
    with app.app_context():
        url = make_url(db.engine.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def enter(app: Flask, sign_in: Callable[[User], Caller]) -> Callable[[int], Caller]:
    """Sign the account of this number in."""

    def caller(number: int) -> Caller:
        with app.app_context():
            user = users.get_user(numbered(number))
        return sign_in(user)

    return caller


def faults(planner: psycopg.Connection, statement: Statement, *, enough: int) -> list[str]:
    """Tell how a statement looks at more than it should: by a plan for its values, or by one for any."""
    sql, values = statement
    if sql.lstrip().startswith("INSERT") or "procrastinate_defer_jobs" in sql or sql == OF_THE_LIBRARY:
        return []
    plans = {"": explain(planner, sql, values), " (prepared)": explain_for_any(planner, sql, values)}
    return [
        f"{plan.rows_read} rows, {plan.blocks_read} pages{how}: {plan.scans}\n        {' '.join(sql.split())[-300:]}"
        for how, plan in plans.items()
        if plan is not None and _looks_at(plan) > enough
    ]


def _looks_at(plan: Plan) -> int:
    return max(plan.rows_read, plan.blocks_read)


# --- lists ------------------------------------------------------------------------------------------------------------


def pages(scene: Scene, caller: Caller, listing: Listing, query: dict[str, str]) -> dict[str, Statement]:
    """Return the statements of a list's first page, and if it has another, of one that begins in the middle."""
    call = {"path": listing.path, "query_string": query, "headers": caller}
    answer, sent = scene.watch(f"GET {listing.route}", call)
    found = {"first page": sent.statements[-1]}
    cursor = answer.json["meta"]["next_cursor"]
    if cursor is not None:
        _, sent = scene.watch(f"GET {listing.route}", {**call, "query_string": {**query, "cursor": cursor}})
        found["page in the middle"] = scene.in_app(moved, sent.statements[-1], listing, query["sort"])
    return found


def moved(statement: Statement, listing: Listing, sort: str) -> Statement:
    """Let a page begin after a row in the middle of the table."""
    column = listing.sorts[sort.removeprefix("-")]
    table = column.table
    count = db.session.scalar(select(func.count()).select_from(table)) or 0
    middle = numbered(min(ROWS, count) // 20 * 10)
    row = db.session.execute(select(table).where(table.c.id == middle)).one()
    sql, values = statement
    begins = BEGINS.search(sql)
    assert begins is not None
    return sql, {**values, begins[1]: getattr(row, column.key), begins[2]: row.id}


@pytest.mark.parametrize("listing", LISTS, ids=lambda listing: listing.name)
def test_a_list_looks_at_little_more_than_it_shows(scene, enter, planner, listing):
    assert not listing.missing()
    caller, wrong = enter(listing.whose), []
    for query in listing.queries():
        is_plain = set(query) == {"sort", *listing.fixed}
        enough = listing.unfiltered if is_plain else OF_ONE_ACCOUNT if listing.bounded else ENOUGH
        for page, statement in pages(scene, caller, listing, query).items():
            wrong += [f"{query}, {page}: {fault}" for fault in faults(planner, statement, enough=enough)]
    assert not wrong, "\n".join(wrong)


# --- everything else --------------------------------------------------------------------------------------------------

# These add up everything, or send it; and these have no end of rows behind them.
WHOLE = {"GET /v1/ledger/balances", "GET /v1/ledger/export.csv"}
NO_LISTS = {"GET /v1/sandbox/payment-methods"}


@pytest.mark.parametrize("route", [route for route in CALLS if route not in WHOLE])
def test_a_route_looks_at_little(scene, planner, route):
    answer, sent = scene.watch(route, CALLS[route](scene))
    wrong = [fault for statement in sent.statements for fault in faults(planner, statement, enough=ENOUGH)]
    assert not wrong, "\n".join(wrong)
    if answer.is_json and "meta" in answer.json:
        assert route in {f"GET {listing.route}" for listing in LISTS} | NO_LISTS


def _look_for_orphans() -> None:
    folder = settings.data_dir / "files" / "00" / "00"
    folder.mkdir(parents=True)
    for number in range(100):
        (folder / f"{number:032x}").touch()
    assert len(list(sweep.find_orphans(older_than=0))) < 100


def _compare() -> None:
    with suppress(GatewayError):  # the provider knows nothing of these payments
        comparing.compare(since=SETTLED, settled=SETTLED)


def _erase_somebody() -> None:
    users.erase_user(numbered(11), actor_id=None)


def _demote() -> None:
    users.update_user(numbered(STAFF), actor_id=None, role=Role.USER)


SETTLED = timedelta(minutes=2)
# What runs by itself or from a command line, and looks something up; the second is at how much it may look. Left out is
# what goes through everything because that is what it is for: `flask files sweep` and `verify`, and the check of the
# books, which adds up all that has happened within the time that it is about.
WORK: dict[str, tuple[Callable[[], object], int]] = {
    "housekeeping": (housekeeping.clean_up, ENOUGH),
    "uploads that died": (sweep.end_stale, ENOUGH),
    "deleted files": (service.purge_deleted, ENOUGH),
    "objects without a row": (_look_for_orphans, ENOUGH),
    "payments that are not known to be made": (lambda: waiting.lost_creates(SETTLED), ENOUGH),
    "payments that may have gone on": (lambda: waiting.open_payments(SETTLED), ENOUGH),
    "operations whose outcome is not known": (lambda: waiting.open_operations(SETTLED), ENOUGH),
    "refunds that are open": (lambda: waiting.open_refunds(SETTLED), ENOUGH),
    "events that wait": (lambda: waiting.unprocessed_events(SETTLED), ENOUGH),
    "payments that nobody paid": (waiting.overdue_payments, ENOUGH),
    "authorisations that lapse": (waiting.lapsing_authorisations, ENOUGH),
    "comparing with the provider": (_compare, ENOUGH),
    "the backlog of jobs": (lambda: current_queue().backlog(), ENOUGH),
    "a change of role": (_demote, ENOUGH),
    "counting the files of an account": (lambda: quota.recount(numbered(HEAVY), dry_run=True), OF_ONE_ACCOUNT),
    "erasing an account": (_erase_somebody, ENOUGH),
}


@pytest.mark.parametrize("work", WORK)
def test_work_in_the_background_looks_at_little(app, planner, work):
    run, enough = WORK[work]
    with app.app_context(), watched(db.engine) as sent:
        run()
    assert sent.statements
    wrong = [fault for statement in sent.statements for fault in faults(planner, statement, enough=enough)]
    assert not wrong, "\n".join(wrong)
