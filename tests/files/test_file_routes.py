import json
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.database import db
from project.files.models import FileStatus
from project.security import Role
from tests.files.asking import begin_upload, code, errors, on_disk, set_status, stored_file, upload, without_request

FILES = "/v1/files"
ID = "01234567-89ab-7cde-8f01-23456789abcd"
CHANGE = {"filename": "after.txt", "visibility": "public", "purpose": "avatar", "metadata": {"a": "b"}}


@pytest.fixture
def ann(as_user):
    """The owner of the file."""
    return as_user(email="ann@example.com")


@pytest.fixture
def file(client, ann):
    """A private file of Ann's, with all that can be said of one."""
    return upload(client, ann, filename="before.txt", purpose="notes", metadata='{"album": "summer", "year": "2030"}')


@pytest.fixture
def path(file):
    return f"{FILES}/{file['id']}"


@pytest.fixture
def audited(in_app):
    """The actions in the audit log, with their actors and targets."""
    events = select(AuditEvent).order_by(AuditEvent.id)

    def look() -> list[tuple]:
        found = db.session.scalars(events)
        return [(event.action, event.actor_id, event.target_type, str(event.target_id)) for event in found]

    return lambda: in_app(look)


# --- who may not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "sent"), [("GET", {}), ("PATCH", {"json": CHANGE}), ("DELETE", {})])
def test_a_file_needs_a_token_even_a_public_one(client, ann, file, path, method, sent):
    client.patch(path, json={"visibility": "public"}, headers=ann)
    for target in (path, f"{FILES}/{ID}"):
        assert code(client.open(target, method=method, **sent)) == (401, "token_required")
    response = client.open(path, method=method, headers=ann.refreshing, **sent)
    assert code(response) == (401, "invalid_token")
    assert client.get(path, headers=ann).json["data"]["filename"] == "before.txt"


@pytest.mark.parametrize("headers", [{}, {"If-Match": '"other"'}, {"If-None-Match": "*"}])
@pytest.mark.parametrize(("method", "sent"), [("GET", {}), ("PATCH", {"json": CHANGE}), ("DELETE", {})])
def test_anothers_file_is_answered_like_none(client, ann, as_user, path, method, sent, headers):
    ben = {**as_user(), **headers}
    before = client.get(path, headers=ann)
    anothers = client.open(path, method=method, headers=ben, **sent)
    assert code(anothers) == (404, "not_found")
    assert without_request(anothers) == without_request(
        client.open(f"{FILES}/{ID}", method=method, headers=ben, **sent)
    )
    assert client.get(path, headers=ann).json == before.json


@pytest.mark.parametrize("role", [Role.STAFF, Role.ADMIN])
def test_staff_read_a_file_and_do_not_change_it(client, ann, as_user, file, path, role):
    caller = as_user(role=role)
    response = client.get(path, headers=caller)
    assert (response.status_code, response.json["data"]) == (200, file)
    for body in (CHANGE, {}):
        assert code(client.patch(path, json=body, headers=caller)) == (403, "forbidden")
        stale = {**caller, "If-Match": '"other"'}
        assert code(client.patch(path, json=body, headers=stale)) == (403, "forbidden")
        assert code(client.patch(f"{FILES}/{ID}", json=body, headers=caller)) == (404, "not_found")
    assert client.get(path, headers=ann).json["data"] == file


def test_staff_do_not_delete_a_file(client, ann, as_staff, path, audited):
    assert code(client.delete(path, headers=as_staff)) == (403, "forbidden")
    assert client.get(path, headers=ann).status_code == 200
    assert audited() == []


@pytest.mark.parametrize(
    "file_id", ["x", "1", ID.upper(), f"{{{ID}}}", ID.replace("-", ""), f"urn:uuid:{ID}", f"{ID}/"]
)
def test_an_id_has_one_spelling(client, ann, file_id):
    assert code(client.get(f"{FILES}/{file_id}", headers=ann)) == (404, "not_found")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_the_client_has_is_not_sent_again(client, ann, path):
    tag = client.get(path, headers=ann).headers["ETag"]
    assert not tag.startswith("W/")
    for header in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        response = client.get(path, headers={**ann, "If-None-Match": header})
        assert (response.status_code, response.data, response.headers["ETag"]) == (304, b"", tag)
    assert client.get(path, headers={**ann, "If-None-Match": '"other"'}).status_code == 200
    assert code(client.get(path, headers={**ann, "If-Match": '"other"'})) == (412, "precondition_failed")


def test_a_head_is_a_get_without_its_body(client, ann, path):
    got, head = client.get(path, headers=ann), client.head(path, headers=ann)
    assert (head.status_code, head.data, head.headers["ETag"]) == (200, b"", got.headers["ETag"])
    assert head.headers["Content-Length"] == got.headers["Content-Length"]


@pytest.mark.parametrize("status", [FileStatus.PENDING, FileStatus.MISSING])
def test_a_file_without_content_can_be_read_about(client, ann, as_user, as_staff, in_app, file, status):
    if status is FileStatus.PENDING:
        path = f"{FILES}/{in_app(begin_upload, ann.user.id)}"
    else:
        path = f"{FILES}/{file['id']}"
        in_app(set_status, file["id"], status)
    for caller in (ann, as_staff):
        data = client.get(path, headers=caller).json["data"]
        assert data["status"] == status.value
        assert (data["sha256"] is None) == (status is FileStatus.PENDING)
    assert code(client.get(path, headers=as_user())) == (404, "not_found")


# --- changing ---------------------------------------------------------------------------------------------------------


def test_a_change_is_answered_with_the_new_version(client, ann, file, path):
    before = client.get(path, headers=ann)
    response = client.patch(path, json=CHANGE, headers=ann)
    assert response.status_code == 200
    assert response.json["data"] == {**file, **CHANGE, "updated_at": response.json["data"]["updated_at"]}
    assert response.json["data"]["updated_at"] > file["updated_at"]
    assert response.headers["ETag"] != before.headers["ETag"]
    after = client.get(path, headers=ann)
    assert (after.json, after.headers["ETag"]) == (response.json, response.headers["ETag"])


@pytest.mark.parametrize("headers", [{}, {"If-Match": "*"}])
def test_nothing_to_change_changes_nothing(client, ann, path, headers):
    before = client.get(path, headers=ann)
    response = client.patch(path, json={}, headers={**ann, **headers})
    assert (response.status_code, response.json) == (200, before.json)
    assert response.headers["ETag"] == before.headers["ETag"]


@pytest.mark.parametrize(
    ("change", "stored"),
    [
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"metadata": {}}, {"metadata": {}}),
        ({"metadata": {"": "", "\u202e": "🦊"}}, {"metadata": {"": "", "\u202e": "🦊"}}),
        ({"purpose": None}, {"purpose": None}),
        ({"purpose": "é" * 40}, {"purpose": "é" * 40}),
        ({"visibility": "public"}, {"visibility": "public"}),
        ({"filename": "../../etc/passwd"}, {"filename": "passwd"}),
        ({"filename": "gpj.\u202eexe"}, {"filename": "gpj.exe"}),
        ({"filename": "a\r\nX-Evil: 1"}, {"filename": "aX-Evil: 1"}),
        ({"filename": "é" * 200 + ".png"}, {"filename": "é" * 125 + ".png"}),
        ({"filename": ""}, {"filename": "file"}),
        ({"filename": "a\0b"}, {"filename": "ab"}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_only_what_was_sent_is_changed_and_wholly(client, ann, file, path, change, stored):
    data = client.patch(path, json=change, headers=ann).json["data"]
    assert {**data, "updated_at": ""} == {**file, **stored, "updated_at": ""}
    assert client.get(path, headers=ann).json["data"] == data


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({"filename": None}, {"/filename": "null_not_allowed"}),
        ({"filename": 1}, {"/filename": "invalid_type"}),
        ({"visibility": None}, {"/visibility": "null_not_allowed"}),
        ({"visibility": "secret"}, {"/visibility": "invalid_choice"}),
        ({"visibility": "PUBLIC"}, {"/visibility": "invalid_choice"}),
        ({"visibility": True}, {"/visibility": "invalid_type"}),
        ({"purpose": ""}, {"/purpose": "invalid_length"}),
        ({"purpose": "x" * 41}, {"/purpose": "invalid_length"}),
        ({"purpose": "a\0b"}, {"/purpose": "invalid_characters"}),
        ({"metadata": None}, {"/metadata": "null_not_allowed"}),
        ({"metadata": []}, {"/metadata": "invalid_type"}),
        ({"metadata": "{}"}, {"/metadata": "invalid_type"}),
        ({"metadata": {"a": 1}}, {"/metadata": "invalid_type"}),
        ({"metadata": {"a": None}}, {"/metadata": "invalid_type"}),
        ({"metadata": {"a": {"b": "c"}}}, {"/metadata": "invalid_type"}),
        ({"metadata": {"a": "b\0"}}, {"/metadata": "invalid_characters"}),
        ({"metadata": {"a": "x" * 4089}}, {"/metadata": "invalid_length"}),
        ({"size": 1}, {"/size": "unknown_field"}),
        ({"content_type": "text/html"}, {"/content_type": "unknown_field"}),
        ({"status": "deleting"}, {"/status": "unknown_field"}),
        ({"owner_id": ID}, {"/owner_id": "unknown_field"}),
        ({"storage_key": "x"}, {"/storage_key": "unknown_field"}),
        ({"purpose": "", "x": 1}, {"/purpose": "invalid_length", "/x": "unknown_field"}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_invalid_change_is_refused_wholly(client, ann, file, path, body, faults):
    for target in (path, f"{FILES}/{ID}"):
        assert errors(client.patch(target, json={"filename": "after.txt", **body}, headers=ann)) == faults
    assert client.get(path, headers=ann).json["data"] == file


def test_metadata_may_take_4_kib_and_no_more(client, ann, path):
    metadata = {"a": "x" * 4088}
    assert len(json.dumps(metadata, separators=(",", ":"))) == 4096
    assert client.patch(path, json={"metadata": metadata}, headers=ann).json["data"]["metadata"] == metadata
    # Bytes, not characters.
    body = {"metadata": {"a": "é" * 2045}}
    assert errors(client.patch(path, json=body, headers=ann)) == {"/metadata": "invalid_length"}


def test_the_version_that_was_read_is_changed_once(client, ann, path):
    headers = {**ann, "If-Match": client.get(path, headers=ann).headers["ETag"]}
    assert client.patch(path, json={"purpose": "first"}, headers=headers).status_code == 200
    for body in ({"purpose": "second"}, {}):
        assert code(client.patch(path, json=body, headers=headers)) == (412, "precondition_failed")
    assert code(client.delete(path, headers=headers)) == (412, "precondition_failed")
    assert client.get(path, headers=ann).json["data"]["purpose"] == "first"


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_a_deleted_file_is_gone_at_once_and_its_bytes_soon_after(client, ann, as_staff, in_app, run_jobs, file, path):
    key = in_app(lambda: stored_file(file["id"]).storage_key)
    response = client.delete(path, headers=ann)
    assert (response.status_code, response.data) == (204, b"")
    assert "Content-Type" not in response.headers
    for caller in (ann, as_staff):
        assert code(client.get(path, headers=caller)) == (404, "not_found")
        assert code(client.patch(path, json=CHANGE, headers=caller)) == (404, "not_found")
        assert code(client.delete(path, headers=caller)) == (404, "not_found")
    for what in ("content", "thumbnail"):
        assert code(client.get(f"{path}/{what}", headers=ann)) == (404, "not_found")
    usage = client.get("/v1/files/usage", headers=ann).json["data"]
    assert (usage["used"], usage["file_count"]) == (file["size"], 1)
    assert key in in_app(on_disk)
    run_jobs()
    usage = client.get("/v1/files/usage", headers=ann).json["data"]
    assert (usage["used"], usage["file_count"]) == (0, 0)
    assert key not in in_app(on_disk)


def test_the_version_that_was_read_is_deleted(client, ann, path):
    tag = client.get(path, headers=ann).headers["ETag"]
    assert client.delete(path, headers={**ann, "If-Match": f'"other", {tag}'}).status_code == 204


def test_an_admin_deletes_anyones_file_and_that_is_an_event(client, ann, as_admin, file, path, audited):
    assert code(client.delete(path, headers={**as_admin, "If-Match": '"other"'})) == (412, "precondition_failed")
    assert audited() == []
    assert client.delete(path, headers=as_admin).status_code == 204
    assert code(client.get(path, headers=ann)) == (404, "not_found")
    assert audited() == [("file_deleted", as_admin.user.id, "file", file["id"])]


def test_an_owner_who_deletes_is_no_event(client, as_admin, audited):
    path = f"{FILES}/{upload(client, as_admin)['id']}"
    assert client.delete(path, headers=as_admin).status_code == 204
    assert audited() == []


def test_a_lost_file_can_be_deleted(client, ann, in_app, run_jobs, file, path):
    in_app(set_status, file["id"], FileStatus.MISSING)
    assert client.delete(path, headers=ann).status_code == 204
    run_jobs()
    assert client.get("/v1/files/usage", headers=ann).json["data"]["used"] == 0


def test_a_file_that_is_being_uploaded_is_not_deleted_yet(client, ann, as_user, in_app):
    path = f"{FILES}/{in_app(begin_upload, ann.user.id)}"
    assert code(client.delete(path, headers=ann)) == (409, "not_ready")
    assert code(client.delete(path, headers={**ann, "If-Match": '"other"'})) == (412, "precondition_failed")
    assert code(client.delete(path, headers=as_user())) == (404, "not_found")


def test_an_upload_that_is_no_direct_one_is_not_completed_by_hand(client, ann, in_app):
    path = f"{FILES}/{in_app(begin_upload, ann.user.id)}"
    assert code(client.post(f"{path}/complete", headers=ann)) == (409, "upload_incomplete")
    assert client.get(path, headers=ann).json["data"]["status"] == "pending"


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_a_file_takes_no_parameters(client, ann, path, method):
    sent: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    response = client.open(f"{path}?force=1", method=method, headers=ann, **sent)
    assert errors(response) == {"/query/force": "unknown_field"}
    assert client.get(path, headers=ann).status_code == 200


def test_files_of_nobody_are_nowhere(client, ann, as_staff, as_admin):
    for caller in (ann, as_staff, as_admin):
        assert code(client.get(f"{FILES}/{uuid4()}", headers=caller)) == (404, "not_found")
