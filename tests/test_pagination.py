from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask, request
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from project import pagination
from project.database import COLUMN_TYPES, db, transaction
from project.pagination import InvalidCursor, PageRequest, contains, next_link, paginate
from tests.small_app import BACKENDS, fresh_database, small_app


class Base(DeclarativeBase):
    """Tables of this file only; the product's metadata stays what the migrations make."""

    registry = registry(type_annotation_map=COLUMN_TYPES)


class Thing(Base):
    __tablename__ = "pagination_things"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID]
    created_at: Mapped[datetime]
    name: Mapped[str]
    size: Mapped[int]


SORTS = {"created_at": Thing.created_at, "name": Thing.name, "size": Thing.size}
EVERY_SORT = [sign + name for name in SORTS for sign in ("", "-")]
OWNER = UUID(int=7)
START = datetime(2030, 1, 1, 12, 0, 0, 999_990, tzinfo=UTC)
NAMES = ["", "a", "A", "é", "100%", "it's", "日本", 'say "hi"', "back\\slash", "z" * 255]


@pytest.fixture(params=BACKENDS)
def app(request, tmp_path, worker_id):
    url = ""
    if request.param == "postgresql":
        url = fresh_database(request.getfixturevalue("postgres_url"), f"pagination_{worker_id}")
    with small_app(tmp_path, Thing, database_url=url) as app:
        app.add_url_rule("/things", view_func=list_things)
        with app.app_context():
            yield app


@pytest.fixture
def sqlite_app(tmp_path):
    with small_app(tmp_path, Thing) as app:
        app.add_url_rule("/things", view_func=list_things)
        with app.app_context():
            yield app


def list_things():
    page = list_page(PageRequest(limit=2, cursor=request.args.get("cursor")))
    link = next_link(page)
    return [thing.name for thing in page], {"Link": link} if link else {}


def list_page(page: PageRequest, *, owner=OWNER):
    return paginate(select(Thing).where(Thing.owner_id == OWNER), page, sorts=SORTS, tiebreaker=Thing.id, owner=owner)


def random_things(random: Random, count: int) -> list[dict]:
    """Rows with many ties in every column, their times a microsecond apart."""
    return [
        {
            "id": UUID(int=random.getrandbits(128)),
            "owner_id": OWNER,
            "created_at": START + timedelta(microseconds=random.randrange(40)),
            "name": random.choice(NAMES),
            "size": random.choice([0, 1, 2, 2**31 - 1]),
        }
        for _ in range(count)
    ]


def add(rows: list[dict]) -> None:
    with transaction():
        db.session.execute(insert(Thing), rows)


def add_named(*names: str) -> None:
    """Add things of these names, each a second younger than the one before."""
    add(
        [
            row | {"name": name, "created_at": START + timedelta(seconds=i)}
            for i, (name, row) in enumerate(zip(names, random_things(Random(1), len(names)), strict=True))
        ]
    )


@pytest.mark.parametrize("sort", EVERY_SORT)
def test_pages_show_each_of_a_thousand_rows_once_while_others_are_inserted(app: Flask, sort: str):
    random = Random(sort)
    rows = random_things(random, 1000)
    add(rows)
    seen: list[Thing] = []
    page_request = PageRequest(limit=97, sort=sort)
    while True:
        page = list_page(page_request)
        seen += page
        if page.next_cursor is None:
            break
        add(random_things(random, 5))
        page_request = PageRequest(limit=97, sort=sort, cursor=page.next_cursor)
    ids = [thing.id for thing in seen]
    assert len(ids) == len(set(ids))
    assert {row["id"] for row in rows} <= set(ids)
    field = sort.removeprefix("-")
    keys = [(getattr(thing, field), thing.id.hex) for thing in seen]
    assert keys == sorted(keys, reverse=sort.startswith("-"))


def test_rows_deleted_between_pages_hide_no_others(app: Flask):
    add_named("a", "b", "c", "d")
    first = list_page(PageRequest(limit=2, sort="name"))
    with transaction():
        for thing in first:
            db.session.delete(thing)
    second = list_page(PageRequest(limit=2, sort="name", cursor=first.next_cursor))
    assert [thing.name for thing in second] == ["c", "d"]


def test_the_last_page_has_no_cursor(app: Flask):
    add_named("a", "b", "c", "d")
    first = list_page(PageRequest(limit=2))
    last = list_page(PageRequest(limit=2, cursor=first.next_cursor))
    assert (len(first), len(last), last.next_cursor) == (2, 2, None)


def test_an_empty_list_is_one_empty_page(app: Flask):
    page = list_page(PageRequest(include_total=True))
    assert (list(page), page.next_cursor, page.total) == ([], None, 0)


def test_the_newest_come_first_unless_asked_otherwise(app: Flask):
    add_named("old", "new")
    assert [thing.name for thing in list_page(PageRequest())] == ["new", "old"]


def test_the_total_counts_all_pages_and_only_what_the_statement_selects(app: Flask):
    add_named("a", "b", "c")
    add([row | {"owner_id": UUID(int=8)} for row in random_things(Random(2), 4)])
    assert list_page(PageRequest(limit=1, include_total=True)).total == 3


def test_nothing_is_counted_unless_asked(app: Flask):
    add_named("a", "b", "c")
    statements: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    page = list_page(PageRequest(limit=1))
    assert page.total is None
    assert len(statements) == 1
    assert "count(" not in statements[0].lower()


def test_a_page_reads_one_row_more_than_it_shows(app: Flask):
    add_named("a", "b", "c", "d")
    parameters: list[Any] = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: parameters.append(args[3]))
    list_page(PageRequest(limit=2))
    bound = parameters[0]
    assert 3 in (bound.values() if isinstance(bound, dict) else bound)


@pytest.mark.parametrize(
    "other",
    [
        {"sort": "created_at"},
        {"sort": "-size"},
        {"bound_to": '{"q":"b"}'},
        {"bound_to": ""},
    ],
)
def test_a_cursor_of_another_query_is_refused(sqlite_app: Flask, other: dict):
    add_named("a", "b")
    mine: dict[str, Any] = {"limit": 1, "sort": "-created_at", "bound_to": '{"q":"a"}'}
    cursor = list_page(PageRequest(**mine)).next_cursor
    assert list_page(PageRequest(**mine, cursor=cursor))
    with pytest.raises(InvalidCursor):
        list_page(PageRequest(**mine | other, cursor=cursor))


@pytest.mark.parametrize("owner", [UUID(int=8), None, (OWNER, "x"), ""])
def test_a_cursor_of_another_caller_is_refused(sqlite_app: Flask, owner: object):
    add_named("a", "b")
    cursor = list_page(PageRequest(limit=1)).next_cursor
    with pytest.raises(InvalidCursor):
        list_page(PageRequest(limit=1, cursor=cursor), owner=owner)


def test_a_cursor_of_another_entity_is_refused(sqlite_app: Flask):
    class Other(Base):
        __tablename__ = "pagination_others"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        created_at: Mapped[datetime]

    add_named("a", "b")
    cursor = list_page(PageRequest(limit=1)).next_cursor
    with pytest.raises(InvalidCursor):
        paginate(
            select(Other),
            PageRequest(limit=1, cursor=cursor),
            sorts={"created_at": Other.created_at},
            tiebreaker=Other.id,
            owner=OWNER,
        )


def test_a_cursor_of_another_secret_is_refused(sqlite_app: Flask, tmp_path):
    add_named("a", "b")
    cursor = list_page(PageRequest(limit=1)).next_cursor
    (tmp_path / "other").mkdir()
    with small_app(tmp_path / "other", Thing) as other, other.app_context(), pytest.raises(InvalidCursor):
        list_page(PageRequest(limit=1, cursor=cursor))


def test_a_cursor_with_any_character_changed_is_refused(sqlite_app: Flask):
    add_named("a", "b")
    cursor = list_page(PageRequest(limit=1)).next_cursor
    assert cursor
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=."
    for i, old in enumerate(cursor):
        # The last character has bits that a decoder throws away, so each other spelling is tried there.
        for new in alphabet if i == len(cursor) - 1 else Random(i).choices(alphabet, k=2):
            if new != old:
                with pytest.raises(InvalidCursor):
                    list_page(PageRequest(limit=1, cursor=cursor[:i] + new + cursor[i + 1 :]))


@pytest.mark.parametrize("change", ["{}=", "{}==", "{} ", " {}", "{}\n", "{}A", "{}.", "{}{}", "{}é"])
def test_a_cursor_has_one_spelling_only(sqlite_app: Flask, change: str):
    add_named("a", "b")
    cursor = list_page(PageRequest(limit=1)).next_cursor
    with pytest.raises(InvalidCursor):
        list_page(PageRequest(limit=1, cursor=change.replace("{}", str(cursor))))


@given(cursor=st.text())
@example("")
@example("\ud800")
@example("[" * 100_000)
@example("A" * 1_000_000)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_text_makes_a_cursor_fail_otherwise_than_refused(sqlite_app: Flask, cursor: str):
    with pytest.raises(InvalidCursor):
        list_page(PageRequest(cursor=cursor))


@given(cursor=st.binary(max_size=200))
@example(b"")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_bytes_in_the_address_make_anything_but_a_problem(sqlite_app: Flask, cursor: bytes):
    query = "cursor=" + "".join(f"%{byte:02x}" for byte in cursor)
    response = sqlite_app.test_client().get(f"/things?{query}")
    assert response.status_code == 400
    assert response.get_json()["code"] == "invalid_cursor"


# Years that PostgreSQL and Python share; text that either database stores.
@given(
    created_at=st.datetimes(timezones=st.just(UTC)),
    name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=255),
    size=st.integers(-(2**63), 2**63 - 1),
    id_=st.uuids(),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_cursor_carries_every_value_exactly(sqlite_app: Flask, created_at, name, size, id_):
    for column, value in ((Thing.created_at, created_at), (Thing.name, name), (Thing.size, size)):
        cursor = pagination._make_cursor([value, id_], ["scope"])
        assert len(cursor) <= pagination.MAX_CURSOR_LENGTH
        assert pagination._read_cursor(cursor, ["scope"], (column, Thing.id)) == [value, id_]


def test_following_the_link_header_shows_everything_once(app: Flask):
    add_named("a", "b", "c", "d", "e")
    client = app.test_client()
    url = "/things"
    seen: list = []
    while url:
        response = client.get(url)
        seen += response.get_json()
        link = response.headers.get("Link", "")
        assert not link or link.startswith("<https://api.example.com/things?")
        assert not link or link.endswith('>; rel="next"')
        url = link.partition(">")[0].removeprefix("<https://api.example.com")
    assert seen == ["e", "d", "c", "b", "a"]


def test_the_link_keeps_the_other_parameters_and_replaces_the_cursor(sqlite_app: Flask):
    page = pagination.Page(["a"], limit=1, next_cursor="next")
    with sqlite_app.test_request_context("/a b/é?q=x%26y>&cursor=old&limit=1"):
        assert next_link(page) == ('<https://api.example.com/a%20b/%C3%A9?q=x%26y%3E&limit=1&cursor=next>; rel="next"')


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%", ["100%"]),
        ("_", ["snake_case"]),
        ("\\", ["back\\slash"]),
        ("/", ["a/b"]),
        ("SNAKE", ["snake_case"]),
        ("CASE", ["snake_case"]),
        ("0%", ["100%"]),
        ("1%0", []),
        ("'", ["it's"]),
        ("(a+)+$", []),
    ],
)
def test_contains_takes_every_character_literally_and_ignores_case(app: Flask, text: str, found: list[str]):
    add_named("100%", "snake_case", "back\\slash", "a/b", "it's")
    assert db.session.scalars(select(Thing.name).where(contains(Thing.name, text))).all() == found
