"""The books as CSV: who gets them, what is in them, and how they are sent."""

import csv
import http.client
import io
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import exc, insert, text

from project.database import db, transaction, uuid7
from project.errors import Unavailable
from project.payments import exports
from project.payments.journal import LedgerEntry
from project.payments.ledger import EXPORT_BATCH
from project.payments.staff_schemas import LedgerEntryOut
from tests.conftest import ENV
from tests.http.client import raw
from tests.payments.asking import data, purchase, refund
from tests.payments.paying import paid
from tests.servers import run_server

EXPORT = "/v1/ledger/export.csv"
BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
SECONDS = 30
HTTP_1_0 = {"SERVER_PROTOCOL": "HTTP/1.0"}


def make_entry(**values) -> LedgerEntry:
    """An entry that is in no database."""
    usual = {
        "id": uuid7(),
        "kind": "capture",
        "debit_account": "assets:provider:sandbox",
        "credit_account": "income:payments",
        "amount": 1000,
        "currency": "USD",
        "livemode": False,
        "payment_id": uuid7(),
        "source_type": "payment",
        "source_id": uuid7(),
        "created_at": BEGIN,
    }
    return LedgerEntry(**{**usual, **values})


def post_entries(count: int, *, same_time: bool = False) -> None:
    """Post this many transfers of a payment, a second apart or all at the same time."""
    payment = paid()
    rows = [
        {
            column.key: getattr(entry, column.key)
            for entry in [make_entry(payment_id=payment.id, amount=number + 1)]
            for column in LedgerEntry.__table__.columns
        }
        | {"created_at": BEGIN + timedelta(seconds=0 if same_time else number)}
        for number in range(count)
    ]
    with transaction():
        db.session.execute(insert(LedgerEntry), rows)


def written(app, *entries: LedgerEntry) -> str:
    """Write entries that are in no database as a table."""
    with app.test_request_context():
        return exports.as_csv([entries]).get_data(as_text=True)


def connections_in_use() -> int:
    """How many connections this process has taken from the pool."""
    return db.engine.pool.checkedout()  # type: ignore[attr-defined]  # of every pool but the abstract one


@contextmanager
def books_away(app) -> Iterator[None]:
    """Let every question about the books fail until the block ends."""

    def rename(old: str, new: str) -> None:
        with app.app_context(), db.engine.connect() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename("ledger_entries", "ledger_away")
    try:
        yield
    finally:
        rename("ledger_away", "ledger_entries")


def settings_of(app) -> dict[str, str]:
    """The settings of a server with the same database."""
    settings = app.extensions["settings"]
    return {**ENV, "DATA_DIR": str(settings.data_dir), "DATABASE_URL": settings.database_url}


@pytest.fixture
def export(client, as_staff) -> Callable[..., list[dict[str, str]]]:
    """Get the table, with these filters."""

    def get(**query: object) -> list[dict[str, str]]:
        answer = client.get(f"{EXPORT}?{urlencode(query)}", headers=as_staff)
        assert answer.status_code == 200, answer.json
        return list(csv.DictReader(io.StringIO(answer.text)))

    return get


def test_the_books_are_for_staff(client, as_user):
    assert client.get(EXPORT).status_code == 401
    assert client.get(EXPORT, headers=as_user()).status_code == 403


def test_the_table_has_the_fields_of_the_entries(client, as_user, as_staff, price_id, export):
    payment = purchase(client, as_user(), price_id)
    refund(client, as_staff, payment, amount=300)

    rows = export()

    entries = data(client.get("/v1/ledger/entries?sort=created_at", headers=as_staff))
    assert rows == [{name: str(value) for name, value in entry.items()} for entry in entries]
    assert [(row["kind"], row["amount"]) for row in rows] == [("capture", "1000"), ("refund", "300")]


def test_the_table_is_a_file_to_save(client, as_staff):
    answer = client.get(EXPORT, headers=as_staff)

    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="ledger.csv"'
    assert answer.headers["Cache-Control"] == "no-store"


def test_empty_books_have_the_header_alone(client, as_staff):
    assert client.get(EXPORT, headers=as_staff).text == ",".join(LedgerEntryOut().fields) + "\r\n"


def test_from_is_within_and_to_is_not(in_app, export):
    in_app(post_entries, 4)
    times = [(BEGIN + timedelta(seconds=second)).isoformat().replace("+00:00", "Z") for second in range(4)]

    rows = export(**{"from": times[1], "to": times[3]})

    assert [row["amount"] for row in rows] == ["2", "3"]


def test_one_account_or_one_payment_can_be_asked_for(client, as_user, as_staff, price_id, export):
    payment, other = (purchase(client, as_user(), price_id) for _ in range(2))
    refund(client, as_staff, other)

    assert [row["kind"] for row in export(account="contra:refunds")] == ["refund"]
    assert [row["source_id"] for row in export(payment_id=payment["id"])] == [payment["id"]]


@pytest.mark.parametrize("query", ["from=yesterday", "to=2030-01-01", "payment_id=1", "limit=5", "from=", "sort=id"])
def test_a_wrong_filter_is_a_problem(client, as_staff, query):
    answer = client.get(f"{EXPORT}?{query}", headers=as_staff)

    assert (answer.status_code, answer.mimetype) == (422, "application/problem+json")


@pytest.mark.parametrize("same_time", [False, True])
def test_a_long_table_has_every_entry_once(in_app, export, same_time):
    count = 2 * EXPORT_BATCH + 1
    in_app(post_entries, count, same_time=same_time)

    rows = export(**{"from": BEGIN.isoformat()})

    assert len({row["id"] for row in rows}) == len(rows) == count
    positions = [(row["created_at"], row["id"]) for row in rows]
    assert positions == sorted(positions)


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_taken_for_a_formula(app, begin):
    table = written(app, make_entry(kind=f'{begin}cmd|" /C calc"!A0, x', debit_account=f"a{begin}b"))

    [row] = csv.DictReader(io.StringIO(table, newline=""))
    assert row["kind"] == f'\'{begin}cmd|" /C calc"!A0, x'
    assert row["debit_account"] == f"a{begin}b"


def test_commas_quotes_and_line_breaks_stay_within_their_cell(app):
    value = 'a "quoted", b\r\nc'
    table = written(app, make_entry(kind=value))

    [row] = csv.DictReader(io.StringIO(table, newline=""))
    assert row["kind"] == value
    assert '"a ""quoted"", b\r\nc"' in table


def test_what_fails_before_the_first_byte_is_answered_with_a_problem(app):
    def fail(_number: int) -> Any:
        raise Unavailable()

    with app.test_request_context(), pytest.raises(Unavailable):
        exports.as_csv(map(fail, [1]))


def test_no_connection_is_held_while_a_client_reads(app, client, as_staff, in_app):
    in_app(post_entries, 2 * EXPORT_BATCH)

    answer = client.get(EXPORT, headers=as_staff)

    blocks = iter(answer.response)
    held = []
    for block in blocks:
        assert block.count(b"\r\n") <= EXPORT_BATCH + 1
        held.append(in_app(connections_in_use))
    assert held == [0, 0, 0]


def test_nothing_is_left_of_a_client_that_goes_away(client, as_staff, in_app):
    in_app(post_entries, 2 * EXPORT_BATCH)

    answer = client.get(EXPORT, headers=as_staff)
    next(iter(answer.response))
    answer.close()

    assert in_app(connections_in_use) == 0
    assert client.get(EXPORT, headers=as_staff).status_code == 200


def test_a_head_request_has_no_body(client, as_staff):
    answer = client.head(EXPORT, headers=as_staff)

    assert (answer.status_code, answer.data, answer.mimetype) == (200, b"", "text/csv")


def test_what_fails_in_the_middle_reaches_the_server(app, client, as_staff, in_app):
    in_app(post_entries, 2 * EXPORT_BATCH)

    answer = client.get(EXPORT, headers=as_staff)
    blocks = iter(answer.response)
    next(blocks)

    with books_away(app), pytest.raises(exc.DBAPIError):
        next(blocks)
    assert in_app(connections_in_use) == 0


def test_without_chunks_the_table_has_its_length(client, as_staff, in_app):
    in_app(post_entries, EXPORT_BATCH + 1)
    streamed = client.get(EXPORT, headers=as_staff)

    with client.get(EXPORT, headers=as_staff, environ_overrides=HTTP_1_0) as whole:
        assert whole.data == streamed.data
    assert (streamed.content_length, whole.content_length) == (None, len(streamed.data))
    for name in ("Content-Type", "Content-Disposition"):
        assert whole.headers[name] == streamed.headers[name]
    assert in_app(connections_in_use) == 0


def test_without_chunks_what_fails_in_the_middle_is_answered_with_a_problem(app):
    def fail(number: int) -> Any:
        if number:
            raise Unavailable()
        return [make_entry()]

    with app.test_request_context(environ_overrides=HTTP_1_0), pytest.raises(Unavailable):
        exports.as_csv(map(fail, range(2)))


@pytest.mark.server
def test_a_table_that_breaks_off_does_not_look_complete(app, as_staff, in_app):
    # More than the buffers between the server and a client that does not read.
    in_app(post_entries, 30 * EXPORT_BATCH)
    with run_server(settings_of(app)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SECONDS)
        connection.connect(("127.0.0.1", server.port))
        token = as_staff["Authorization"]
        connection.sendall(f"GET {EXPORT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["Transfer-Encoding"]) == (200, "chunked")
        # The server waits for this client; what it asks of the database next fails.
        with books_away(app), pytest.raises(http.client.IncompleteRead):
            answer.read()
        assert server.process.poll() is None


@pytest.mark.server
def test_the_server_sends_a_client_without_chunks_the_whole_table(app, as_staff, in_app):
    in_app(post_entries, 3 * EXPORT_BATCH)
    token = as_staff["Authorization"]
    with run_server(settings_of(app)) as server:
        asked = f"GET {EXPORT}?from=2030-01-01T00:00:00Z HTTP/1.0\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n"
        answer = raw(server.url, asked.encode())

    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.body.count(b"\r\n") == 1 + 3 * EXPORT_BATCH
