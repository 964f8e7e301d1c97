import gzip
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import Connection, event, text

from project.database import db
from project.files.models import FileStatus
from project.idempotency_keys import LOCKED_FOR
from project.security import Role
from tests.files.asking import TEXT, begin_upload, code, errors, relative, set_status, upload, without_request
from tests.files.samples import HTML, picture

FILES = "/v1/files"
SHARES = "/v1/shares"
ID = "01234567-89ab-7cde-8f01-23456789abcd"
NOW = "2030-01-31T12:00:00Z"
GONE = (410, "share_expired")


@pytest.fixture
def ann(as_user):
    """The owner of the files."""
    return as_user(email="ann@example.com")


@pytest.fixture
def path(client, ann):
    """Where the links to a private text of Ann's are."""
    return f"{FILES}/{upload(client, ann)['id']}/shares"


@pytest.fixture
def share(client, ann, path):
    """Make a link to the text, and return it as it was answered."""

    def make(**body) -> dict[str, Any]:
        response = client.post(path, json=body, headers=ann)
        assert response.status_code == 201, response.json
        return dict(response.json["data"])

    return make


@pytest.fixture
def get(client):
    """Get something whole as somebody without a token, and close it."""
    return lambda url, headers=None, method="GET": client.open(url, method=method, headers=headers, buffered=True)


@pytest.fixture
def listed(client, ann, path):
    """The links as their list shows them, the newest first."""
    return lambda: client.get(path, headers=ann).json["data"]


@pytest.fixture
def at_noon(ann, sign_in, time_machine):
    """Stop the clock, with a session that lives then."""
    time_machine.move_to(NOW, tick=False)
    ann.update(sign_in(ann.user))
    return time_machine


# --- who may ----------------------------------------------------------------------------------------------------------


def test_sharing_needs_a_token(client, ann, path, share):
    made = share()
    for method, url in (("POST", path), ("GET", path), ("DELETE", f"{path}/{made['id']}")):
        sent: dict[str, Any] = {"json": {}} if method == "POST" else {}
        assert code(client.open(url, method=method, **sent)) == (401, "token_required")
        assert code(client.open(url, method=method, headers=ann.refreshing, **sent)) == (401, "invalid_token")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("visibility", ["private", "public"])
def test_the_links_of_another_are_answered_like_none(client, ann, as_user, path, share, get, role, visibility):
    client.patch(path.removesuffix("/shares"), json={"visibility": visibility}, headers=ann)
    made, caller = share(), as_user(role=role)
    nowhere = f"{FILES}/{ID}/shares"
    for method, url, none in (
        ("POST", path, nowhere),
        ("GET", path, nowhere),
        ("DELETE", f"{path}/{made['id']}", f"{nowhere}/{made['id']}"),
    ):
        sent: dict[str, Any] = {"json": {}} if method == "POST" else {}
        response = client.open(url, method=method, headers=caller, **sent)
        assert code(response) == (404, "not_found")
        assert without_request(response) == without_request(client.open(none, method=method, headers=caller, **sent))
    assert get(relative(made["url"])).status_code == 200


def test_a_link_is_revoked_through_its_own_file_only(client, ann, path, share, get):
    made = share()
    other = f"{FILES}/{upload(client, ann)['id']}/shares"
    for url in (f"{other}/{made['id']}", f"{path}/{uuid4()}", f"{path}/x", f"{FILES}/{ID}/shares/{made['id']}"):
        assert code(client.delete(url, headers=ann)) == (404, "not_found")
    assert get(relative(made["url"])).status_code == 200


# --- making -----------------------------------------------------------------------------------------------------------


def test_a_link_tells_its_url_once(client, ann, at_noon, path, get):
    response = client.post(path, json={}, headers=ann)
    data = response.json["data"]
    assert response.status_code == 201
    assert data == {
        "id": data["id"],
        "url": data["url"],
        "expires_at": "2030-02-07T12:00:00Z",
        "max_downloads": None,
        "downloads": 0,
        "label": None,
        "created_at": "2030-01-31T12:00:00Z",
    }
    assert response.headers["Location"] == f"{path}/{data['id']}"
    assert response.headers["Cache-Control"] == "no-store"
    shared = get(relative(data["url"]))
    assert (shared.status_code, shared.data) == (200, TEXT)
    shown = client.get(path, headers=ann)
    del data["url"]
    assert shown.json == {"data": [{**data, "downloads": 1}], "meta": {"limit": 20, "next_cursor": None}}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"expires_in": 1}, {"expires_at": "2030-01-31T12:00:01Z"}),
        ({"expires_in": 30 * 86400}, {"expires_at": "2030-03-02T12:00:00Z"}),
        ({"max_downloads": 1}, {"max_downloads": 1}),
        ({"max_downloads": 2**31 - 1}, {"max_downloads": 2**31 - 1}),
        ({"max_downloads": None, "label": None}, {"max_downloads": None, "label": None}),
        ({"label": "x"}, {"label": "x"}),
        ({"label": "🦊" * 100}, {"label": "🦊" * 100}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_link_may_be_bounded_and_labelled(at_noon, share, listed, body, told):
    made = share(**body)
    assert {name: made[name] for name in told} == told
    assert {name: listed()[0][name] for name in told} == told


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({"expires_in": 0}, {"/expires_in": "out_of_range"}),
        ({"expires_in": -1}, {"/expires_in": "out_of_range"}),
        ({"expires_in": 30 * 86400 + 1}, {"/expires_in": "out_of_range"}),
        ({"expires_in": None}, {"/expires_in": "null_not_allowed"}),
        ({"expires_in": "60"}, {"/expires_in": "invalid_type"}),
        ({"expires_in": 60.0}, {"/expires_in": "invalid_type"}),
        ({"expires_in": True}, {"/expires_in": "invalid_type"}),
        ({"max_downloads": 0}, {"/max_downloads": "out_of_range"}),
        ({"max_downloads": -1}, {"/max_downloads": "out_of_range"}),
        ({"max_downloads": 2**31}, {"/max_downloads": "out_of_range"}),
        ({"max_downloads": "1"}, {"/max_downloads": "invalid_type"}),
        ({"label": ""}, {"/label": "invalid_length"}),
        ({"label": "x" * 101}, {"/label": "invalid_length"}),
        ({"label": "a\0b"}, {"/label": "invalid_characters"}),
        ({"label": 1}, {"/label": "invalid_type"}),
        ({"url": "x"}, {"/url": "unknown_field"}),
        ({"downloads": 5}, {"/downloads": "unknown_field"}),
        ({"token": "x"}, {"/token": "unknown_field"}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_invalid_link_is_not_made(client, ann, path, listed, body, faults):
    for url in (path, f"{FILES}/{ID}/shares"):
        assert errors(client.post(url, json=body, headers=ann)) == faults
    assert listed() == []


def dump(app: Flask) -> str:
    """Everything that the database keeps, as text."""
    with app.app_context(), db.engine.connect() as connection:
        tables = (connection.execute(text(f"SELECT * FROM {table.name}")) for table in db.metadatas[None].sorted_tables)
        return "\n".join(repr(tuple(row)) for table in tables for row in table)


def test_the_database_has_no_token_that_opens_anything(app, share, get):
    url = relative(share(label="a label that is found")["url"])
    token = url.removeprefix(f"{SHARES}/")
    assert len(token) == 43
    assert get(url).status_code == 200
    found = dump(app)
    assert "a label that is found" in found
    assert token not in found


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_link_opens_the_file_for_everybody(ann, as_user, share, get):
    url = relative(share()["url"])
    for headers in (ann, as_user(), ann.refreshing, {"Authorization": "Bearer x.y.z"}, {"Authorization": "x"}):
        response = get(url, headers)
        assert (response.status_code, response.data) == (200, TEXT)
    response = get(url)
    assert (response.status_code, response.data) == (200, TEXT)
    expected = {
        "Cache-Control": "private, no-store",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "same-site",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": 'attachment; filename="hello.txt"',
    }
    assert {name: response.headers[name] for name in expected} == expected
    assert get(f"{url}?disposition=inline").headers["Content-Disposition"].startswith("inline;")


def test_a_link_to_a_public_file_is_not_kept_by_caches_either(client, ann, path, share, get):
    client.patch(path.removesuffix("/shares"), json={"visibility": "public"}, headers=ann)
    assert get(relative(share()["url"])).headers["Cache-Control"] == "private, no-store"


def test_what_is_not_safe_is_not_shown_through_a_link_either(client, ann, get):
    file = upload(client, ann, HTML, filename="a.html", content_type="text/html")
    made = client.post(f"{FILES}/{file['id']}/shares", json={}, headers=ann).json["data"]
    response = get(relative(made["url"]) + "?disposition=inline")
    assert response.headers["Content-Disposition"] == 'attachment; filename="a.html"'
    assert response.content_type == "application/octet-stream"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_link_that_nobody_made_is_404(get, share, method):
    token = relative(share()["url"]).removeprefix(f"{SHARES}/")
    others = ["x", token[:-1], f"{token}x", f"{token}=", token.swapcase(), f"{token[1:]}{token[0]}", "%00", "%FF", "🦊"]
    for other in others:
        assert get(f"{SHARES}/{other}", method=method).status_code == 404


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("disposition=show", {"/query/disposition": "invalid_choice"}),
        ("disposition=inline&disposition=inline", {"/query/disposition": "repeated_parameter"}),
        ("password=1", {"/query/password": "unknown_field"}),
        ("exp=1&sig=x", {"/query/exp": "unknown_field", "/query/sig": "unknown_field"}),
    ],
)
def test_parameters_of_a_link_are_checked_before_it_is_looked_for(share, get, query, faults):
    for url in (relative(share()["url"]), f"{SHARES}/x"):
        assert errors(get(f"{url}?{query}")) == faults


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_link_works_for_its_time(at_noon, share, get, listed, method):
    url = relative(share(expires_in=60)["url"])
    at_noon.shift(timedelta(seconds=59.999))
    assert get(url, method=method).status_code == 200
    at_noon.shift(timedelta(milliseconds=1))
    for headers in ({}, {"Range": "bytes=5-"}, {"If-None-Match": "*"}, {"If-Match": '"x"'}):
        response = get(url, headers, method)
        assert response.status_code == 410
        assert method == "HEAD" or code(response) == GONE
    assert len(listed()) == 1, "it can be seen that it has expired"


def test_a_revoked_link_ends_at_once_and_others_stay(client, ann, path, share, get, listed):
    made, other = share(), share()
    response = client.delete(f"{path}/{made['id']}", headers=ann)
    assert (response.status_code, response.data) == (204, b"")
    assert code(get(relative(made["url"]))) == GONE
    assert get(relative(other["url"])).status_code == 200
    assert [link["id"] for link in listed()] == [other["id"]]
    assert code(client.delete(f"{path}/{made['id']}", headers=ann)) == (404, "not_found")


def test_a_link_to_a_deleted_file_is_404(client, ann, path, share, get, run_jobs):
    made = share()
    assert client.delete(path.removesuffix("/shares"), headers=ann).status_code == 204
    for _ in range(2):
        assert code(get(relative(made["url"]))) == (404, "not_found")
        assert code(client.get(path, headers=ann)) == (404, "not_found")
        assert code(client.delete(f"{path}/{made['id']}", headers=ann)) == (404, "not_found")
        run_jobs()


def test_a_link_to_a_lost_file_is_410_and_not_counted(client, ann, in_app, path, files_root, get, listed):
    file_id = path.split("/")[3]
    made = client.post(path, json={"max_downloads": 1}, headers=ann).json["data"]
    for stored in (found for found in files_root.rglob("*") if found.is_file()):
        stored.unlink()
    assert code(get(relative(made["url"]))) == (410, "file_lost")
    in_app(set_status, file_id, FileStatus.MISSING)
    assert code(get(relative(made["url"]))) == (410, "file_lost")
    assert listed()[0]["downloads"] == 0


def test_a_link_to_a_file_that_is_still_coming_is_404(client, ann, in_app, get):
    pending = f"{FILES}/{in_app(begin_upload, ann.user.id)}/shares"
    made = client.post(pending, json={}, headers=ann).json["data"]
    assert code(get(relative(made["url"]))) == (404, "not_found")


# --- counting ---------------------------------------------------------------------------------------------------------


def test_a_link_that_is_used_up_is_410_for_every_request(share, get, listed):
    url = relative(share(max_downloads=2)["url"])
    assert [get(url).status_code for _ in range(2)] == [200, 200]
    for method in ("GET", "HEAD"):
        for headers in ({}, {"Range": "bytes=0-0"}, {"Range": "bytes=5-"}, {"If-None-Match": "*"}):
            assert get(url, headers, method).status_code == 410
    assert code(get(url)) == GONE
    assert listed()[0]["downloads"] == 2


def test_what_does_not_start_at_the_first_byte_does_not_count(share, get, listed):
    url = relative(share(max_downloads=1)["url"])
    tag = get(url, method="HEAD").headers["ETag"]
    asked: list[tuple[dict[str, str], str, int]] = [
        ({}, "HEAD", 200),
        ({"If-None-Match": tag}, "GET", 304),
        ({"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"}, "GET", 304),
        ({"If-Match": '"x"'}, "GET", 412),
        ({"Range": "bytes=13-"}, "GET", 416),
        ({"Range": "bytes=7-11"}, "GET", 206),
        ({"Range": "bytes=-5"}, "GET", 206),
    ]
    for headers, method, status in asked:
        assert get(url, headers, method).status_code == status
        assert listed()[0]["downloads"] == 0
    assert errors(get(f"{url}?x=1")) == {"/query/x": "unknown_field"}
    assert get(url).status_code == 200
    assert listed()[0]["downloads"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=0-0"},
        {"Range": "bytes=0-"},
        {"Range": "bytes=-99"},
        {"Range": "bytes=5-6,8-9"},
        {"Range": "x"},
    ],
    ids=str,
)
def test_what_starts_at_the_first_byte_counts(share, get, listed, headers):
    url = relative(share(max_downloads=1)["url"])
    assert get(url, headers).status_code in {200, 206}
    assert listed()[0]["downloads"] == 1
    assert code(get(url, headers)) == GONE


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call all of them at the same moment, each in a thread, and return what they returned."""
    ready = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        ready.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


@pytest.mark.parametrize("allowed", [1, 3])
def test_of_ten_downloads_at_once_no_more_are_let_through_than_allowed(app, share, listed, allowed):
    url = relative(share(max_downloads=allowed)["url"])

    def download() -> tuple[int, bytes]:
        response = app.test_client().get(url, buffered=True)
        return response.status_code, response.data if response.status_code == 200 else b""

    answers = Counter(at_once(*[download] * 10))
    assert answers == {(200, TEXT): allowed, (410, b""): 10 - allowed}
    assert listed()[0]["downloads"] == allowed


def test_a_download_and_a_revocation_at_once_have_an_order(app, client, ann, path, share):
    """Whichever was first: once the revocation is answered nothing more is sent."""
    for _ in range(3):
        made = share()

        def revoke(made: dict[str, Any] = made) -> int:
            return app.test_client().delete(f"{path}/{made['id']}", headers=ann).status_code

        def download(made: dict[str, Any] = made) -> int:
            return app.test_client().get(relative(made["url"]), buffered=True).status_code

        revoked, *downloaded = at_once(revoke, *[download] * 3)
        assert revoked == 204
        assert set(downloaded) <= {200, 410}
        assert download() == 410


# --- listing ----------------------------------------------------------------------------------------------------------


def test_links_are_listed_page_by_page(client, ann, path, share):
    made = [share(label=str(number))["label"] for number in range(5)]
    found, url = [], f"{path}?limit=2&include_total=true"
    while url:
        response = client.get(url, headers=ann)
        assert response.json["meta"]["total"] == 5
        found += [link["label"] for link in response.json["data"]]
        assert not {"url", "token", "token_sha256"} & set(response.json["data"][0])
        link = response.headers.get("Link")
        url = relative(link[1 : link.index(">")]) if link else ""
    assert found == made[::-1]
    oldest = client.get(f"{path}?sort=created_at", headers=ann).json["data"]
    assert [link["label"] for link in oldest] == made


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("limit=0", {"/query/limit": "out_of_range"}),
        ("limit=101", {"/query/limit": "out_of_range"}),
        ("sort=label", {"/query/sort": "invalid_choice"}),
        ("revoked=true", {"/query/revoked": "unknown_field"}),
        ("limit=1&limit=2", {"/query/limit": "repeated_parameter"}),
    ],
)
def test_a_list_of_links_takes_what_lists_take(client, ann, path, query, faults):
    for url in (path, f"{FILES}/{ID}/shares"):
        assert errors(client.get(f"{url}?{query}", headers=ann)) == faults


def test_a_cursor_of_one_files_links_is_of_no_use_to_another(client, ann, path, share):
    for _ in range(2):
        share()
    cursor = client.get(f"{path}?limit=1", headers=ann).json["meta"]["next_cursor"]
    assert client.get(f"{path}?limit=1&cursor={cursor}", headers=ann).status_code == 200
    other = f"{FILES}/{upload(client, ann)['id']}/shares"
    for url in (f"{other}?limit=1&cursor={cursor}", f"{path}?sort=created_at&cursor={cursor}", f"{path}?cursor=x"):
        assert code(client.get(url, headers=ann)) == (400, "invalid_cursor")


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


def test_a_repeated_request_is_answered_with_the_same_link(client, ann, path, get, listed):
    headers = {**ann, "Idempotency-Key": "one"}
    first = client.post(path, json={"label": "a", "max_downloads": 5}, headers=headers)
    again = client.post(path, json={"max_downloads": 5, "label": "a"}, headers=headers)
    assert (again.status_code, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert get(relative(again.json["data"]["url"])).status_code == 200
    assert len(listed()) == 1
    other = client.post(path, json={"label": "b"}, headers=headers)
    assert code(other) == (422, "idempotency_key_reused")


def test_refusals_do_not_burn_the_key(client, ann, path):
    headers = {**ann, "Idempotency-Key": "one"}
    assert code(client.post(f"{FILES}/{ID}/shares", json={}, headers=headers)) == (404, "not_found")
    assert errors(client.post(path, json={"label": ""}, headers=headers)) == {"/label": "invalid_length"}
    assert client.post(path, json={}, headers=headers).status_code == 201


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def test_an_answer_that_was_lost_is_had_again_with_a_link_that_works(
    app, client, ann, sign_in, time_machine, path, get, listed
):
    """Whoever dies after the commit has told nobody the token; of that only the hash is left, so there is a new one."""
    time_machine.move_to(NOW, tick=False)
    headers = {**sign_in(ann.user), "Idempotency-Key": "one"}
    with app.app_context():
        engine = db.engine

    def die(_connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("UPDATE idempotency_keys") and "response_body" in statement:
            raise Killed

    event.listen(engine, "before_cursor_execute", die)
    try:
        with pytest.raises(Killed):
            client.post(path, json={"label": "a"}, headers=headers)
    finally:
        event.remove(engine, "before_cursor_execute", die)
    assert code(client.post(path, json={"label": "a"}, headers=headers)) == (409, "idempotency_in_progress")
    time_machine.shift(LOCKED_FOR + timedelta(seconds=1))
    response = client.post(path, json={"label": "a"}, headers=headers)
    assert response.status_code == 201
    assert response.json["data"]["label"] == "a"
    assert get(relative(response.json["data"]["url"])).data == TEXT
    ann.update(headers)
    assert [link["id"] for link in listed()] == [response.json["data"]["id"]]


def test_the_budget_of_downloads_is_spent_by_links_too(share, get):
    url = relative(share()["url"])
    for answer in (get(url), get(f"{SHARES}/x"), get(url, method="HEAD")):
        assert answer.headers["RateLimit-Policy"].startswith('"download";')


def test_a_link_sends_what_was_stored_and_nothing_more(client, ann, get):
    packed = gzip.compress(b"x" * 10_000)
    for content, declared in ((packed, "application/gzip"), (picture("WEBP"), "image/webp")):
        file = upload(client, ann, content, filename="a", content_type=declared)
        made = client.post(f"{FILES}/{file['id']}/shares", json={}, headers=ann).json["data"]
        response = get(relative(made["url"]), {"Accept-Encoding": "gzip"})
        assert (response.data, response.content_type) == (content, declared)
        assert "Content-Encoding" not in response.headers
