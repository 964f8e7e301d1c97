import base64
import hashlib
import os
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from project.files.models import FileStatus
from project.security import Role
from tests.files.asking import TEXT, begin_upload, code, errors, set_status, stored_file, upload, without_request
from tests.files.samples import HTML, PDF, SVG, picture

FILES = "/v1/files"
ID = "01234567-89ab-7cde-8f01-23456789abcd"
PNG = picture("PNG")
SANDBOX = "default-src 'none'; sandbox"


@pytest.fixture
def ann(as_user):
    """The owner of the files."""
    return as_user(email="ann@example.com")


@pytest.fixture
def get(client):
    """Get something whole, and close it."""
    return lambda path, headers=None, method="GET": client.open(path, method=method, headers=headers, buffered=True)


def addresses(file: dict) -> tuple[str, str]:
    """Where a file's content and its thumbnail are."""
    return f"{FILES}/{file['id']}/content", f"{FILES}/{file['id']}/thumbnail"


# --- who may not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_private_content_is_answered_like_none(client, ann, as_user, as_staff, as_admin, get, method):
    file = upload(client, ann, PNG, content_type="image/png")
    strangers = [None, as_user(), as_staff, as_admin]
    for path, nowhere in zip(addresses(file), addresses({"id": ID}), strict=True):
        for caller in strangers:
            for condition in ({}, {"If-None-Match": "*"}, {"If-Match": '"x"'}, {"Range": "bytes=999-"}):
                headers = {**(caller or {}), **condition}
                private, none = get(path, headers, method), get(nowhere, headers, method)
                assert private.status_code == 404
                if method == "GET":
                    assert code(private) == (404, "not_found")
                    assert without_request(private) == without_request(none)


@pytest.fixture
def bad_tokens(client, ann, sign_in, time_machine):
    """Tokens that are of no use, with the code that tells why."""
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    expired = sign_in(ann.user)
    time_machine.shift(timedelta(hours=2))
    ended = sign_in(ann.user)
    assert client.post("/v1/auth/logout", headers=ended).status_code == 204
    return [
        ({"Authorization": "Bearer x.y.z"}, "invalid_token"),
        ({"Authorization": "Bearer"}, "token_required"),
        ({"Authorization": ""}, "token_required"),
        ({"Authorization": "Basic YTpi"}, "token_required"),
        (sign_in(ann.user).refreshing, "invalid_token"),
        (dict(expired), "token_expired"),
        (dict(ended), "session_revoked"),
    ]


def test_a_bad_token_is_told_even_where_none_is_needed(client, ann, sign_in, get, bad_tokens):
    file = upload(client, sign_in(ann.user), PNG, content_type="image/png", visibility="public")
    for path in (*addresses(file), *addresses({"id": ID})):
        for headers, reason in bad_tokens:
            response = get(path, headers)
            assert code(response) == (401, reason)
            assert response.headers["WWW-Authenticate"].startswith("Bearer ")
            assert response.headers["Cache-Control"] == "no-store"


def test_content_is_its_owners(client, ann, get):
    file = upload(client, ann, PNG, content_type="image/png", filename="holiday.png")
    content, thumbnail = (get(path, ann) for path in addresses(file))
    assert (content.status_code, content.data, content.content_type) == (200, PNG, "image/png")
    assert (thumbnail.status_code, thumbnail.content_type) == (200, "image/webp")


def test_public_content_is_everybodys(client, ann, as_user, as_staff, as_admin, get):
    file = upload(client, ann, PNG, content_type="image/png", visibility="public")
    for path in addresses(file):
        answers = [get(path, caller) for caller in (None, ann, as_user(), as_staff, as_admin)]
        assert {(answer.status_code, answer.data) for answer in answers} == {(200, answers[0].data)}


def test_what_is_made_private_again_is_nobody_elses(client, ann, get):
    path, _ = addresses(file := upload(client, ann, visibility="public"))
    assert get(path).status_code == 200
    client.patch(f"{FILES}/{file['id']}", json={"visibility": "private"}, headers=ann)
    tag = get(path, ann).headers["ETag"]
    assert code(get(path, {"If-None-Match": tag})) == (404, "not_found")


# --- files without content --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", ["private", "public"])
def test_that_content_is_still_coming_is_told_to_its_owner_alone(ann, as_user, as_staff, in_app, get, visibility):
    file_id = in_app(begin_upload, ann.user.id, visibility=visibility)
    for path, nowhere in zip(addresses({"id": file_id}), addresses({"id": ID}), strict=True):
        assert code(get(path, ann)) == (409, "not_ready")
        for caller in (None, as_user(), as_staff):
            assert code(get(path, caller)) == (404, "not_found")
            assert without_request(get(path, caller)) == without_request(get(nowhere, caller))


def test_deleted_content_is_nowhere(client, ann, as_admin, get):
    file = upload(client, ann, PNG, content_type="image/png", visibility="public")
    assert client.delete(f"{FILES}/{file['id']}", headers=ann).status_code == 204
    for path in addresses(file):
        for caller in (None, ann, as_admin):
            assert code(get(path, caller)) == (404, "not_found")


@pytest.fixture(params=["no bytes", "too few bytes", "no bytes, as a sweep has found"])
def lose(request, in_app, files_root):
    """Lose the bytes of a file."""

    def lose(file: dict) -> None:
        key = in_app(lambda: stored_file(file["id"]).storage_key)
        if request.param == "too few bytes":
            os.truncate(files_root / key, 3)
            return
        (files_root / key).unlink()
        if "sweep" in request.param:
            in_app(set_status, file["id"], FileStatus.MISSING)

    return lose


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("condition", [{}, {"If-None-Match": "*"}, {"If-Match": '"x"'}, {"Range": "bytes=0-0"}])
def test_lost_content_is_410_for_whoever_may_read_it(client, ann, as_user, get, lose, method, condition):
    file = upload(client, ann)
    path, _ = addresses(file)
    lose(file)
    response = get(path, {**ann, **condition}, method)
    assert response.status_code == 410
    assert method == "HEAD" or code(response) == (410, "file_lost")
    assert get(path, as_user(), method).status_code == get(path, None, method).status_code == 404


# --- headers of content -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visibility", "cache", "policy"),
    [("private", "private, no-cache", "same-site"), ("public", "public, max-age=300", "cross-origin")],
)
def test_content_says_what_may_be_done_with_it(client, ann, get, visibility, cache, policy):
    path, _ = addresses(upload(client, ann, filename="a.txt", visibility=visibility))
    response, head = get(path, ann), get(path, ann, "HEAD")
    digest = hashlib.sha256(TEXT)
    tag = f'"{digest.hexdigest()}"'
    expected = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(TEXT)),
        "Content-Disposition": 'attachment; filename="a.txt"',
        "ETag": tag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": cache,
        "Cross-Origin-Resource-Policy": policy,
        "Content-Security-Policy": SANDBOX,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Vary": "Origin",
    }
    for answer in (response, head):
        assert {name: answer.headers[name] for name in expected} == expected
        assert len(answer.headers.getlist("Cache-Control")) == len(answer.headers.getlist("ETag")) == 1
        assert answer.headers["Last-Modified"].endswith("GMT")
    assert (response.data, head.data) == (TEXT, b"")
    unchanged = get(path, {**ann, "If-None-Match": tag})
    kept = ("ETag", "Cache-Control", "Content-Security-Policy", "Cross-Origin-Resource-Policy", "Vary")
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    assert {name: unchanged.headers[name] for name in kept} == {name: expected[name] for name in kept}


def test_conditions_and_ranges_of_content_are_heeded(client, ann, get):
    path, _ = addresses(file := upload(client, ann))
    tag = f'"{file["sha256"]}"'
    part = get(path, {**ann, "Range": "bytes=7-11", "If-Range": tag})
    assert (part.status_code, part.data, part.headers["Content-Range"]) == (206, b"world", "bytes 7-11/13")
    assert get(path, {**ann, "Range": "bytes=7-11", "If-Range": '"x"'}).status_code == 200
    assert get(path, {**ann, "Range": "bytes=0-0,5-6"}).data == TEXT
    assert code(get(path, {**ann, "If-Match": '"x"'})) == (412, "precondition_failed")
    beyond = get(path, {**ann, "Range": "bytes=13-"})
    assert code(beyond) == (416, "range_not_satisfiable")
    assert beyond.headers["Content-Range"] == "bytes */13"
    assert get(path, {**ann, "Range": "bytes=13-"}, "HEAD").headers["Content-Length"] == "13"


SHOWN = [("image/png", PNG), ("image/jpeg", picture("JPEG")), ("image/gif", picture("GIF")), ("text/plain", TEXT)]
SAVED = [
    ("text/html", HTML),
    ("image/svg+xml", SVG),
    ("text/plain", HTML),
    ("image/png", SVG),
    ("application/pdf", PDF),
    ("text/csv", b"a,b\n"),
    ("application/json", b"{}"),
    ("text/javascript", b"alert(1)"),
]


@pytest.mark.parametrize(
    ("declared", "content", "disposition"),
    [*[(*sample, "inline") for sample in SHOWN], *[(*sample, "attachment") for sample in SAVED]],
)
def test_only_what_is_safe_to_show_is_shown(client, ann, get, declared, content, disposition):
    path, _ = addresses(upload(client, ann, content, filename="a", content_type=declared, visibility="public"))
    answers = {asked: get(path + asked) for asked in ("?disposition=inline", "?disposition=attachment", "")}
    sent = {asked: answer.headers["Content-Disposition"].partition(";")[0] for asked, answer in answers.items()}
    assert sent == {"?disposition=inline": disposition, "?disposition=attachment": "attachment", "": "attachment"}
    for answer in answers.values():
        assert answer.headers["Content-Security-Policy"] == SANDBOX
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.content_type.partition(";")[0] not in {"text/html", "image/svg+xml", "text/javascript"}


@pytest.mark.parametrize(
    ("name", "disposition"),
    [
        ('a";\r\nX-Evil: 1', "attachment; filename=\"a_;X-Evil: 1\"; filename*=UTF-8''a%22%3BX-Evil%3A%201"),
        ("Zoë.txt", "attachment; filename=\"Zoe.txt\"; filename*=UTF-8''Zo%C3%AB.txt"),
        ("🦊", "attachment; filename=\"_\"; filename*=UTF-8''%F0%9F%A6%8A"),
        ("gpj.\u202eexe", 'attachment; filename="gpj.exe"'),
    ],
)
def test_a_name_is_no_way_into_the_headers(client, ann, get, name, disposition):
    file = upload(client, ann)
    client.patch(f"{FILES}/{file['id']}", json={"filename": name}, headers=ann)
    response = get(addresses(file)[0], ann)
    assert response.headers["Content-Disposition"] == disposition
    assert "X-Evil" not in response.headers


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("disposition=show", {"/query/disposition": "invalid_choice"}),
        ("disposition=", {"/query/disposition": "invalid_choice"}),
        ("disposition=inline&disposition=inline", {"/query/disposition": "repeated_parameter"}),
        ("download=1", {"/query/download": "unknown_field"}),
        ("exp=1&exp=2&sig=x", {"/query/exp": "repeated_parameter"}),
        ("token=x", {"/query/token": "unknown_field"}),
        ("access_token=x", {"/query/access_token": "unknown_field"}),
    ],
)
def test_parameters_of_content_are_checked_before_it_is_looked_for(client, ann, get, query, faults):
    for file in (upload(client, ann, PNG, content_type="image/png"), {"id": ID}):
        for path in addresses(file):
            assert errors(get(f"{path}?{query}", ann)) == faults


def test_a_header_of_the_proxy_is_nothing_that_clients_can_use(client, ann, as_user, get, in_app):
    file = upload(client, ann)
    key = in_app(lambda: stored_file(file["id"]).storage_key)
    for name in ("X-Accel-Redirect", "X-Sendfile", "X-Original-URL", "X-Rewrite-URL"):
        assert get(addresses(file)[0], {**as_user(), name: f"/_files/{key}"}).status_code == 404
        assert name not in get(addresses(file)[0], ann).headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_content_is_not_changed(client, ann, method):
    file = upload(client, ann)
    for path in addresses(file):
        response = client.open(path, method=method, data=b"other", headers=ann)
        assert code(response) == (405, "method_not_allowed")
        assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


# --- how often --------------------------------------------------------------------------------------------------------


def test_downloads_have_a_budget_of_their_own(app, client, ann, as_user, get, monkeypatch):
    file = upload(client, ann, PNG, content_type="image/png", visibility="public")
    settings = app.extensions["settings"]
    limits = replace(settings.limits, download="4/hour")
    monkeypatch.setitem(app.extensions, "settings", replace(settings, limits=limits))
    content, thumbnail = addresses(file)
    ben = as_user()
    statuses = [get(path, ben).status_code for path in (content, thumbnail, f"{content}?x=1", addresses({"id": ID})[0])]
    assert statuses == [200, 200, 422, 404]
    for path in (content, thumbnail, f"{FILES}/{uuid4()}/content"):
        refused = get(path, ben)
        assert code(refused) == (429, "rate_limited")
        assert refused.headers["RateLimit-Policy"] == '"download";q=4;w=3600'
        assert refused.headers["RateLimit"].startswith('"download";r=0;t=')
        assert int(refused.headers["Retry-After"]) > 0
    # Neither others nor the budgets of other operations are touched.
    assert get(content, ann).headers["RateLimit"].startswith('"download";r=3;t=')
    assert get(content).headers["RateLimit"].startswith('"download";r=3;t=')
    assert get(f"{FILES}/{file['id']}", ben).status_code == 404


@pytest.mark.parametrize("role", Role)
def test_ids_that_nobody_has_are_404_for_everybody(client, as_user, get, role):
    caller = as_user(role=role)
    for path in (*addresses({"id": uuid4()}), *addresses({"id": "1"}), *addresses({"id": ID.upper()})):
        for headers in (None, caller):
            assert code(get(path, headers)) == (404, "not_found")
