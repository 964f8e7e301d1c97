from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from sqlalchemy import event, insert

from project.database import db, transaction, uuid7
from project.files.models import File, FileStatus, UploadMethod
from project.files.storage import new_key
from project.security import Role
from tests.files.asking import code, errors, relative, upload

FILES = "/v1/files"
MISSING = "01234567-89ab-7cde-8f01-23456789abcd"
START = datetime(2030, 1, 31, 12, tzinfo=UTC)


def add_files(owner_id, *files: dict) -> list[str]:
    """Add rows of files, a second apart, and return their ids; nobody will ask for their bytes."""
    rows = []
    for number, told in enumerate(files):
        made = {"created_at": START + timedelta(seconds=number), "updated_at": START, "ready_at": START}
        boring = {"filename": "a.txt", "size": 1, "reserved": 0, "content_type": "text/plain", "sha256": "0" * 64}
        fixed = {"id": uuid7(), "owner_id": owner_id, "storage_key": new_key(), "upload_method": UploadMethod.RAW}
        rows.append({**boring, **made, "declared_type": "text/plain", "status": FileStatus.READY, **fixed, **told})
    with transaction():
        db.session.execute(insert(File), rows)
    return [str(row["id"]) for row in rows]


@pytest.fixture
def ann(as_user):
    """Who lists files."""
    return as_user(email="ann@example.com")


@pytest.fixture
def add(in_app, ann):
    """Add rows of files, Ann's unless told otherwise, and return their ids."""
    return lambda *files, owner=ann: in_app(add_files, owner.user.id, *files)


@pytest.fixture
def listed(client, ann):
    """The ids that a list shows."""

    def ask(query: str = "", headers=ann) -> list[str]:
        response = client.get(f"{FILES}?{query}", headers=headers)
        assert response.status_code == 200, response.json
        return [file["id"] for file in response.json["data"]]

    return ask


def follow(client, url: str | None, headers) -> list[list[str]]:
    """The ids of every page, by the Link header."""
    pages = []
    while url:
        response = client.get(url, headers=headers)
        pages.append([file["id"] for file in response.json["data"]])
        link = response.headers.get("Link")
        assert bool(link) == bool(response.json["meta"]["next_cursor"])
        url = relative(link[1 : link.index(">")]) if link else None
    return pages


# --- whose ------------------------------------------------------------------------------------------------------------


def test_listing_files_needs_a_token(client, ann):
    assert code(client.get(FILES)) == (401, "token_required")
    assert code(client.get(f"{FILES}?limit=0")) == (401, "token_required")
    assert code(client.get(FILES, headers=ann.refreshing)) == (401, "invalid_token")


@pytest.mark.parametrize("query", ["scope=all", f"user_id={MISSING}", f"scope=mine&user_id={MISSING}", "scope=all&q=a"])
def test_only_staff_list_the_files_of_others(client, ann, add, query):
    add({})
    assert code(client.get(f"{FILES}?{query}", headers=ann)) == (403, "forbidden")
    assert code(client.get(f"{FILES}?user_id={ann.user.id}", headers=ann)) == (403, "forbidden")


@pytest.mark.parametrize("role", Role)
def test_everybody_lists_their_own_files(as_user, add, listed, role):
    caller, other = as_user(role=role), as_user(role=role)
    theirs = add({"visibility": "public"}, owner=other)
    mine = add({}, {}, owner=caller)
    assert listed("", caller) == listed("scope=mine", caller) == mine[::-1]
    assert listed("", other) == theirs


@pytest.mark.parametrize("role", [Role.STAFF, Role.ADMIN])
def test_staff_list_everybodys_files_or_somebodys(ann, as_user, add, listed, role):
    caller, ben = as_user(role=role), as_user()
    own, hers, his = add({}, owner=caller), add({}, {}), add({}, owner=ben)
    assert set(listed("scope=all", caller)) == {*own, *hers, *his}
    for scope in ("", "&scope=all", "&scope=mine"):
        assert listed(f"user_id={ann.user.id}{scope}", caller) == hers[::-1]
    assert listed(f"user_id={MISSING}", caller) == []


@pytest.mark.parametrize("query", ["", "scope=all"])
def test_only_files_with_content_are_listed(as_staff, add, listed, query):
    states = [
        {"status": FileStatus.PENDING, "sha256": None, "ready_at": None},
        {"status": FileStatus.DELETING},
        {"status": FileStatus.MISSING},
        {"status": FileStatus.READY},
    ]
    ids = add(*states, owner=as_staff)
    assert listed(query, as_staff) == ids[-1:]


def test_a_file_is_listed_as_it_is_shown(client, ann):
    file = upload(client, ann, metadata='{"a": "b"}', purpose="notes")
    response = client.get(FILES, headers=ann)
    assert response.json == {"data": [file], "meta": {"limit": 20, "next_cursor": None}}
    assert "Link" not in response.headers
    assert client.get(f"{FILES}/{file['id']}", headers=ann).json["data"] == file


# --- filters ----------------------------------------------------------------------------------------------------------


def test_files_are_filtered_by_what_is_said_of_them(as_staff, add, listed):
    plain, public, avatar, both = add(
        {},
        {"visibility": "public"},
        {"purpose": "avatar"},
        {"visibility": "public", "purpose": "avatar", "filename": "both.txt"},
    )
    assert listed("visibility=private") == [avatar, plain]
    assert listed("visibility=public") == [both, public]
    assert listed("purpose=avatar") == [both, avatar]
    assert listed("purpose=Avatar") == listed("purpose=%25") == listed("purpose=avata_") == []
    assert listed("visibility=public&purpose=avatar&q=both") == [both]
    assert listed("visibility=public&scope=all", as_staff) == [both, public]


def test_files_are_filtered_by_type(add, listed):
    types = ["image/png", "image/svg+xml", "image/vnd.x-icon", "imagex/png", "text/plain", "application/octet-stream"]
    found = dict(zip(types, add(*({"content_type": kind} for kind in types)), strict=True))
    assert listed("type=image/*") == [found[kind] for kind in types[2::-1]]
    # A plus in a query is a blank, unless it is escaped.
    assert listed("type=image/svg%2Bxml") == [found["image/svg+xml"]]
    for kind in ("image/png", "text/plain", "imagex/png"):
        assert listed(f"type={kind}") == [found[kind]]
    assert listed("type=audio/*") == listed("type=image/pn") == listed("type=image/.png") == []
    assert listed("type=im_ge/*") == listed("type=image/p_g") == []


def test_what_was_declared_is_nothing_to_filter_by(add, listed):
    add({"declared_type": "image/png"})
    assert listed("type=image/*") == []


NAMES = [
    "Holiday.JPG",
    "100%.txt",
    "100x.txt",
    "a_b.txt",
    "axb.txt",
    "back\\slash.txt",
    "Zoë 🦊.png",
    "'; DROP TABLE files",
]


@pytest.mark.parametrize(
    ("q", "names"),
    [
        ("holiday", ["Holiday.JPG"]),
        ("DAY.j", ["Holiday.JPG"]),
        ("100%", ["100%.txt"]),
        ("%", ["100%.txt"]),
        ("_", ["a_b.txt"]),
        ("a_b", ["a_b.txt"]),
        ("\\", ["back\\slash.txt"]),
        ("\\s", ["back\\slash.txt"]),
        ("%%", []),
        ("%.txt", ["100%.txt"]),
        ("h%y", []),
        ("🦊", ["Zoë 🦊.png"]),
        ("oë ", ["Zoë 🦊.png"]),
        ("'; drop", ["'; DROP TABLE files"]),
        ("(a+)+$", []),
        (" ", ["'; DROP TABLE files", "Zoë 🦊.png"]),
        ("x" * 200, []),
    ],
)
def test_names_are_searched_for_exactly_these_characters(client, ann, add, q, names):
    add(*({"filename": name} for name in NAMES))
    response = client.get(f"{FILES}?{urlencode({'q': q})}", headers=ann)
    assert sorted(file["filename"] for file in response.json["data"]) == sorted(names)


def test_files_are_filtered_by_when_they_were_made(add, listed):
    first, second, third = add({}, {}, {})
    assert listed("created_after=2030-01-31T12:00:00Z") == [third, second]
    assert listed("created_after=2030-01-31T14:00:00.999999%2B02:00") == [third, second]
    assert listed("created_after=2030-01-31T11:59:59.999999Z") == [third, second, first]
    assert listed("created_after=2030-01-31T12:00:02Z") == listed("created_after=9999-12-31T23:59:59Z") == []


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("type=image", {"/query/type": "invalid_format"}),
        ("type=*/*", {"/query/type": "invalid_format"}),
        ("type=image/png%0A", {"/query/type": "invalid_format"}),
        ("visibility=all", {"/query/visibility": "invalid_choice"}),
        ("q=", {"/query/q": "invalid_length"}),
        ("q=a&q=b", {"/query/q": "repeated_parameter"}),
        ("sort=-purpose", {"/query/sort": "invalid_choice"}),
        ("scope=none", {"/query/scope": "invalid_choice"}),
        ("user_id=me", {"/query/user_id": "invalid_format"}),
        ("status=missing", {"/query/status": "unknown_field"}),
        ("type=x&limit=0", {"/query/type": "invalid_format", "/query/limit": "out_of_range"}),
    ],
)
def test_a_list_says_what_is_wrong_with_its_query(client, ann, query, faults):
    assert errors(client.get(f"{FILES}?{query}", headers=ann)) == faults
    # What is wrong is told before what is not allowed.
    if "scope" not in query and "user_id" not in query:
        assert errors(client.get(f"{FILES}?{query}&scope=all", headers=ann)) == faults


# --- order and pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["created_at", "size", "filename"])
def test_files_are_sorted_both_ways_and_paged(client, ann, add, sort):
    """With equal values among them, which the id puts in order."""
    files = [
        {"created_at": START - timedelta(days=number // 4), "size": number // 2, "filename": f"{number // 3}.txt"}
        for number in range(11)
    ]
    ids = add(*files)
    expected = sorted(ids, key=lambda file: (files[ids.index(file)][sort], file))
    for name, order in ((sort, expected), (f"-{sort}", expected[::-1])):
        pages = follow(client, f"{FILES}?sort={name}&limit=4", ann)
        assert [len(page) for page in pages] == [4, 4, 3]
        assert [file for page in pages for file in page] == order


def test_names_of_any_characters_can_be_paged_through(client, ann, add):
    names = ["", "é" * 127, "🦊" * 63, "\\", "'", '"', "%", "a b", "ÿ", "\U0010ffff"]
    ids = add(*({"filename": name} for name in names))
    for sort in ("filename", "-filename"):
        pages = follow(client, f"{FILES}?sort={sort}&limit=1", ann)
        assert sorted(file for page in pages for file in page) == sorted(ids)


def test_sizes_beyond_32_bits_can_be_paged_through(client, ann, add):
    ids = add(*({"size": size} for size in (1, 2**32, 2**53 + 1, 2**53, 2**63 - 1)))
    pages = follow(client, f"{FILES}?sort=size&limit=1", ann)
    assert pages == [[ids[0]], [ids[1]], [ids[3]], [ids[2]], [ids[4]]]
    assert client.get(f"{FILES}?sort=-size&limit=1", headers=ann).json["data"][0]["size"] == 2**63 - 1


def test_a_file_that_comes_meanwhile_neither_repeats_nor_hides_another(client, ann, add):
    ids = add({}, {}, {}, {})
    first = client.get(f"{FILES}?limit=2", headers=ann)
    add({"created_at": START + timedelta(hours=1)})
    cursor = first.json["meta"]["next_cursor"]
    second = client.get(f"{FILES}?limit=2&cursor={cursor}", headers=ann)
    assert [file["id"] for file in second.json["data"]] == ids[1::-1]
    assert second.json["meta"]["next_cursor"] is None


FIRST = {
    "limit": "1",
    "sort": "size",
    "visibility": "private",
    "purpose": "notes",
    "type": "text/*",
    "q": "a",
    "created_after": "2001-01-31T12:00:00Z",
}


@pytest.fixture
def cursor(client, ann, add):
    """Where the second page of the query FIRST begins."""
    add(*[{"purpose": "notes"}] * 3)
    return client.get(f"{FILES}?{urlencode(FIRST)}", headers=ann).json["meta"]["next_cursor"]


@pytest.mark.parametrize(
    "change",
    [
        {"sort": "-size"},
        {"sort": None},
        {"visibility": None},
        {"visibility": "public"},
        {"purpose": None},
        {"purpose": "other"},
        {"type": "text/plain"},
        {"type": None},
        {"q": "A"},
        {"q": None},
        {"created_after": "2001-01-31T12:00:01Z"},
        {"created_after": None},
    ],
    ids=str,
)
def test_a_cursor_is_of_no_use_to_another_query(client, ann, cursor, change):
    query = {name: value for name, value in {**FIRST, **change, "cursor": cursor}.items() if value}
    assert code(client.get(f"{FILES}?{urlencode(query)}", headers=ann)) == (400, "invalid_cursor")


def test_a_cursor_is_of_no_use_to_another_caller_or_scope(client, ann, as_user, as_staff, cursor):
    query = urlencode({**FIRST, "cursor": cursor})
    for caller, scope in (
        (as_user(), ""),
        (as_staff, ""),
        (as_staff, f"&user_id={ann.user.id}"),
        (as_staff, "&scope=all"),
    ):
        response = client.get(f"{FILES}?{query}{scope}", headers=caller)
        assert code(response) == (400, "invalid_cursor")


@pytest.mark.parametrize("change", ["{}x", "x{}", "", "0", "{}="])
def test_an_altered_cursor_is_refused(client, ann, cursor, change):
    query = urlencode({**FIRST, "cursor": change.format(cursor)})
    assert code(client.get(f"{FILES}?{query}", headers=ann)) == (400, "invalid_cursor")


def test_the_next_page_may_be_larger_and_counted(client, ann, cursor):
    query = urlencode({**FIRST, "cursor": cursor, "limit": 100, "include_total": "true"})
    response = client.get(f"{FILES}?{query}", headers=ann)
    assert len(response.json["data"]) == 2
    assert response.json["meta"] == {"limit": 100, "next_cursor": None, "total": 3}


def test_what_is_counted_is_what_is_listed(client, ann, as_user, as_staff, add):
    add({}, {}, {"visibility": "public"}, {"status": FileStatus.MISSING})
    add({}, {}, owner=as_user())
    totals = [
        (ann, "", 3),
        (ann, "visibility=public&", 1),
        (as_staff, "", 0),
        (as_staff, "scope=all&", 5),
        (as_staff, f"user_id={ann.user.id}&", 3),
    ]
    for caller, query, total in totals:
        meta = client.get(f"{FILES}?{query}limit=1&include_total=true", headers=caller).json["meta"]
        assert meta["total"] == total
    assert "total" not in client.get(f"{FILES}?include_total=false", headers=ann).json["meta"]


@pytest.fixture
def statements(app):
    """Every statement that the database gets from here on."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_) -> None:
        seen.append(statement)

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(("query", "count"), [("", 2), ("?q=a&type=text/*&limit=100", 2), ("?include_total=true", 3)])
def test_a_list_takes_a_fixed_number_of_queries(client, ann, add, statements, query, count):
    add(*[{}] * 30)
    statements.clear()
    assert client.get(FILES + query, headers=ann).status_code == 200
    assert len(statements) == count, statements
