"""Direct uploads: what clients put into the bucket counts once it was checked, whatever dies meanwhile."""

import hashlib
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select

from project.database import db, utcnow
from project.errors import Invalid, NotFound, Unavailable
from project.files import direct, quota, service
from project.files.direct import UploadIncomplete
from project.files.models import DirectUpload, File, FileStatus, StorageUsage
from project.files.quota import Usage
from project.files.service import NotReady
from project.files.sweep import end_stale, sweep
from project.users import service as users
from project.users.models import User
from tests.factories import make_user
from tests.files.asking import FILES, code, errors, relative
from tests.files.buckets import (
    Bucket,
    at,
    check_books,
    check_nothing_stored,
    incoming,
    parameters,
    request,
    send,
    sent_up,
    start,
)
from tests.files.samples import picture
from tests.files.uploading import (
    CONTENT,
    Killed,
    at_once,
    broken,
    check_counters,
    holds_no_connection,
    principal_of,
    status_of,
)

DIRECT = f"{FILES}/direct"
PNG = picture("PNG", (40, 20))
OTHER = CONTENT[::-1]
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def described(content: bytes = PNG, **told: Any) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"filename": "a.png", "size": len(content), "content_type": "image/png", "sha256": digest, **told}


def begin(client, caller, content: bytes = PNG, **told: Any) -> dict[str, Any]:
    response = client.post(DIRECT, json=described(content, **told), headers=caller)
    assert response.status_code == 201, response.json
    return response.json["data"]


def put(begun: dict[str, Any], content: bytes = PNG) -> int:
    permission = begun["upload"]
    sent = request(permission["method"], permission["url"], headers=permission["headers"], data=content)
    return sent.status_code


def path_of(begun: dict[str, Any]) -> str:
    return f"{FILES}/{begun['file']['id']}"


# --- The way of a client ---------------------------------------------------------------------------------------------


def test_a_direct_upload_begins_with_a_pending_file_and_a_permission(client, as_user, bucket):
    caller = as_user()
    before = utcnow()
    sent = described(content_type="text/plain", visibility="public", purpose="album", metadata={"a": "b"})
    response = client.post(DIRECT, json=sent, headers=caller)
    assert response.status_code == 201
    file, permission = response.json["data"].pop("file"), response.json["data"].pop("upload")
    path = f"{FILES}/{file['id']}"
    assert file == {
        **sent,
        "id": file["id"],
        "declared_type": "text/plain",
        "status": "pending",
        "width": None,
        "height": None,
        "content_url": f"http://localhost{path}/content",
        "thumbnail_url": None,
        "owner_id": str(caller.user.id),
        "created_at": file["created_at"],
        "updated_at": file["updated_at"],
    }
    assert response.headers["Location"] == path
    assert response.headers["Cache-Control"] == "no-store"
    assert client.get(path, headers=caller).json == {"data": file}
    expires_at = datetime.fromisoformat(permission.pop("expires_at"))
    assert timedelta(minutes=15) <= expires_at - before < timedelta(minutes=16)
    url = permission.pop("url")
    assert url.startswith(f"{parameters(bucket.url.replace('s3:', 'http:'))['endpoint']}/{bucket.name}/files/incoming/")
    assert parameters(url)["X-Amz-Expires"] == "900"
    assert permission == {
        "method": "PUT",
        "headers": {
            "Content-Type": "text/plain",
            "Content-Length": str(len(PNG)),
            "x-amz-checksum-sha256": b64encode(bytes.fromhex(sent["sha256"])).decode(),
            "If-None-Match": "*",
        },
    }


def test_what_was_put_into_the_bucket_becomes_a_file_when_it_is_complete(client, as_user, bucket, in_app):
    caller = as_user()
    begun = begin(client, caller, content_type="text/plain")
    assert put(begun) == 200
    response = client.post(f"{path_of(begun)}/complete", headers=caller)
    assert response.status_code == 200
    file = response.json["data"]
    # What was found out from the bytes.
    found = {
        "status": "ready",
        "content_type": "image/png",
        "declared_type": "text/plain",
        "width": 40,
        "height": 20,
        "thumbnail_url": f"http://localhost{path_of(begun)}/thumbnail",
        "updated_at": file["updated_at"],
    }
    assert file == {**begun["file"], **found}
    shown = client.get(path_of(begun), headers=caller)
    assert (shown.json, shown.headers["ETag"]) == (response.json, response.headers["ETag"])
    assert [entry["id"] for entry in client.get(FILES, headers=caller).json["data"]] == [file["id"]]
    in_app(check_books, bucket)
    redirect = client.get(relative(file["content_url"]), headers=caller)
    content = request("GET", redirect.headers["Location"])
    assert (content.status_code, content.headers["Content-Type"], content.content) == (200, "image/png", PNG)


def test_the_room_of_a_direct_upload_is_held_and_then_used(client, as_user, bucket):
    caller = as_user()
    begun = begin(client, caller)

    def usage() -> dict[str, int]:
        return client.get(f"{FILES}/usage", headers=caller).json["data"]

    assert (usage()["used"], usage()["reserved"], usage()["file_count"]) == (0, len(PNG), 0)
    put(begun)
    client.post(f"{path_of(begun)}/complete", headers=caller)
    assert (usage()["used"], usage()["reserved"], usage()["file_count"]) == (len(PNG), 0, 1)


def test_a_file_that_is_not_complete_is_in_no_list_and_has_no_content(client, as_user, as_staff, bucket):
    caller = as_user()
    begun = begin(client, caller, visibility="public")
    put(begun)
    for reader, query in ((caller, ""), (as_staff, "?scope=all"), (as_staff, f"?user_id={caller.user.id}")):
        assert client.get(f"{FILES}{query}", headers=reader).json["data"] == []
    for what in ("content", "thumbnail"):
        assert code(client.get(f"{path_of(begun)}/{what}", headers=caller)) == (409, "not_ready")
        for reader in (as_user(), as_staff, {}):
            assert code(client.get(f"{path_of(begun)}/{what}", headers=reader)) == (404, "not_found")
    signed = client.post(f"{path_of(begun)}/signed-url", json={}, headers=caller).json["data"]
    assert code(client.get(relative(signed["url"]))) == (404, "not_found")
    share = client.post(f"{path_of(begun)}/shares", json={}, headers=caller).json["data"]
    assert code(client.get(relative(share["url"]))) == (404, "not_found")


def test_a_client_that_has_seen_the_pending_file_is_told_that_it_is_ready(client, as_user, bucket):
    caller = as_user()
    begun = begin(client, caller)
    pending = client.get(path_of(begun), headers=caller).headers["ETag"]
    put(begun)
    assert client.post(f"{path_of(begun)}/complete", headers=caller).headers["ETag"] != pending
    assert client.get(path_of(begun), headers={**caller, "If-None-Match": pending}).status_code == 200


def test_what_is_said_of_a_pending_file_can_be_changed(client, as_user, bucket):
    caller = as_user()
    begun = begin(client, caller)
    put(begun)
    changed = client.patch(path_of(begun), json={"filename": "b.png", "visibility": "public"}, headers=caller)
    assert (changed.status_code, changed.json["data"]["status"]) == (200, "pending")
    ready = client.post(f"{path_of(begun)}/complete", headers=caller).json["data"]
    assert (ready["status"], ready["filename"], ready["visibility"]) == ("ready", "b.png", "public")


def test_to_complete_again_changes_nothing(client, as_user, bucket, in_app):
    caller = as_user()
    begun = begin(client, caller)
    put(begun)
    first = client.post(f"{path_of(begun)}/complete", headers=caller)
    objects = bucket.objects()
    second = client.post(f"{path_of(begun)}/complete", headers=caller)
    assert (second.status_code, second.json, second.headers["ETag"]) == (200, first.json, first.headers["ETag"])
    assert bucket.objects() == objects
    in_app(check_books, bucket)


def test_before_the_bytes_have_come_nothing_is_complete_and_afterwards_it_is(client, as_user, bucket, in_app):
    caller = as_user()
    begun = begin(client, caller)
    for _ in range(2):
        assert code(client.post(f"{path_of(begun)}/complete", headers=caller)) == (409, "upload_incomplete")
    assert client.get(path_of(begun), headers=caller).json["data"] == begun["file"]
    assert put(begun) == 200
    assert client.post(f"{path_of(begun)}/complete", headers=caller).status_code == 200
    in_app(check_books, bucket)


def test_nobody_else_completes_an_upload(client, as_user, as_staff, as_admin, bucket):
    caller = as_user()
    begun = begin(client, caller, visibility="public")
    put(begun)
    for other in (as_user(), as_staff, as_admin):
        assert code(client.post(f"{path_of(begun)}/complete", headers=other)) == (404, "not_found")
    assert code(client.post(f"{path_of(begun)}/complete")) == (401, "token_required")
    assert client.get(path_of(begun), headers=caller).json["data"]["status"] == "pending"


@pytest.mark.parametrize(
    ("came", "pointer"),
    [(PNG[:-1] + b"\0", "/sha256"), (PNG[:-1], "/size"), (PNG + b"\0", "/size"), (b"", "/size")],
    ids=["other", "fewer", "more", "none"],
)
def test_other_bytes_than_were_declared_end_the_upload(client, as_user, bucket, in_app, came, pointer):
    caller = as_user()
    begun = begin(client, caller)
    bucket.put(in_app(lambda: db.session.scalar(select(DirectUpload.incoming_key))), came)
    response = client.post(f"{path_of(begun)}/complete", headers=caller)
    assert errors(response) == {pointer: "digest_mismatch"}
    in_app(check_nothing_stored, bucket)
    assert code(client.post(f"{path_of(begun)}/complete", headers=caller)) == (404, "not_found")


def test_nobody_changes_the_bytes_once_they_were_checked(client, as_user, bucket, in_app):
    caller = as_user()
    begun = begin(client, caller)
    put(begun)
    assert put(begun) == 412  # there is an object, as If-None-Match says there must not be
    client.post(f"{path_of(begun)}/complete", headers=caller)
    # The URL is good for a quarter of an hour.
    assert put(begun, PNG[::-1]) == 200
    redirect = client.get(f"{path_of(begun)}/content", headers=caller)
    assert request("GET", redirect.headers["Location"]).content == PNG
    assert len(bucket.objects()) == 2
    assert in_app(sweep, older_than=0).orphans == 1
    in_app(check_books, bucket)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_of_several_faults_of_a_direct_upload_the_same_is_told_first(client, as_user, bucket, in_app, set_files):
    set_files(allowed_types=["image/*"], max_size=1000, quota=100)
    faulty = described(bytes(1001), content_type="text/plain", more=1)
    assert code(client.post(DIRECT, json=faulty)) == (401, "token_required")
    caller = as_user()

    def refusal(**told: Any) -> tuple[int, str]:
        return code(client.post(DIRECT, json=described(bytes(1001), **told), headers=caller))

    assert refusal(content_type="text/plain", more=1) == (422, "validation_error")
    assert refusal(content_type="text/plain") == (413, "file_too_large")
    assert refusal(content_type="text/plain", size=1000) == (415, "type_not_allowed")
    assert refusal(size=1000) == (413, "quota_exceeded")
    set_files(storage_url="file:///nowhere")
    assert refusal() == (413, "file_too_large")
    assert refusal(content_type="text/plain", size=1000) == (415, "type_not_allowed")
    assert refusal(size=1000) == (409, "direct_upload_unsupported")
    assert in_app(lambda: db.session.scalars(select(File)).all()) == []


def test_uploads_that_are_open_fill_the_quota(client, as_user, bucket, set_files, in_app):
    set_files(quota=2 * len(PNG) + 1)
    caller = as_user()
    first = begin(client, caller)
    begin(client, caller)
    assert code(client.post(DIRECT, json=described(), headers=caller)) == (413, "quota_exceeded")
    put(first)
    client.post(f"{path_of(first)}/complete", headers=caller)
    assert code(client.post(DIRECT, json=described(), headers=caller)) == (413, "quota_exceeded")
    in_app(check_counters)


def test_a_type_that_is_not_allowed_is_found_out_when_it_is_there(client, as_user, bucket, set_files, in_app):
    set_files(allowed_types=["image/*"])
    caller = as_user()
    begun = begin(client, caller, CONTENT, content_type="image/png")
    put(begun, CONTENT)
    assert code(client.post(f"{path_of(begun)}/complete", headers=caller)) == (415, "type_not_allowed")
    in_app(check_nothing_stored, bucket)


def test_without_credentials_nothing_is_begun(client, as_user, bucket, watch, in_app):
    watch(at("before upload_target", Unavailable()))
    caller = as_user()
    response = client.post(DIRECT, json=described(), headers=caller)
    assert code(response) == (503, "service_unavailable")
    in_app(check_nothing_stored, bucket)


# --- Idempotency-Key -------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(in_app) -> Engine:
    """The connections of the application."""
    return in_app(lambda: db.engine)


def test_a_repeated_beginning_is_answered_with_the_first_permission(client, as_user, bucket, in_app):
    headers = {**as_user(), "Idempotency-Key": "one"}
    first, again = (client.post(DIRECT, json=described(), headers=headers) for _ in range(2))
    assert (again.status_code, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    other = client.post(DIRECT, json=described(filename="b.png"), headers=headers)
    assert code(other) == (422, "idempotency_key_reused")
    assert len(in_app(lambda: db.session.scalars(select(File)).all())) == 1


def test_after_a_lost_answer_the_permission_is_given_anew(client, as_user, bucket, in_app, engine, later):
    caller = as_user()
    headers = {**caller, "Idempotency-Key": "one"}
    with broken("UPDATE idempotency_keys SET state", engine=engine):
        first = client.post(DIRECT, json=described(), headers=headers).json["data"]
    later(minutes=5)
    response = client.post(DIRECT, json=described(), headers=headers)
    assert response.status_code == 201
    assert "Idempotent-Replayed" not in response.headers
    again = response.json["data"]
    assert again["file"] == first["file"]
    assert again["upload"]["url"] != first["upload"]["url"]
    assert again["upload"]["expires_at"] > first["upload"]["expires_at"]
    assert put(again) == 200
    assert client.post(f"{path_of(first)}/complete", headers=caller).status_code == 200
    in_app(check_books, bucket)


def test_there_is_no_permission_for_what_is_complete_already(client, as_user, bucket, in_app, engine, later):
    caller = as_user()
    headers = {**caller, "Idempotency-Key": "one"}
    with broken("UPDATE idempotency_keys SET state", engine=engine):
        begun = client.post(DIRECT, json=described(), headers=headers).json["data"]
    put(begun)
    client.post(f"{path_of(begun)}/complete", headers=caller)
    later(minutes=2)
    assert code(client.post(DIRECT, json=described(), headers=headers)) == (404, "not_found")
    in_app(check_books, bucket)


# --- What ends an upload ---------------------------------------------------------------------------------------------


@pytest.fixture
def user(session, bucket) -> User:
    """An account that uploads."""
    made = make_user()
    db.session.expunge_all()
    return made


def complete(file: File, user: User) -> File:
    db.session.expunge_all()
    return direct.complete(file.id, owner_id=user.id)


def delete(file: File, user: User) -> None:
    db.session.expunge_all()
    service.delete_file(file.id, caller=principal_of(user))


@pytest.mark.parametrize("has_come", [False, True], ids=["before", "after"])
def test_whoever_deletes_an_open_upload_aborts_it(user, bucket, has_come):
    file = sent_up(user) if has_come else start(user).file
    delete(file, user)
    check_nothing_stored(bucket)
    with pytest.raises(NotFound):
        complete(file, user)


def test_an_upload_that_is_being_completed_is_not_deleted(app, user, bucket, watch):
    file = sent_up(user)
    refused: list[int] = []

    def try_to_delete() -> None:
        with app.app_context(), pytest.raises(NotReady) as error:
            delete(file, user)
        refused.append(error.value.status)

    watch(lambda _moment: try_to_delete())
    assert complete(file, user).status is FileStatus.READY
    assert len(refused) >= 4
    check_books(bucket)


@pytest.mark.parametrize("moment", ["before move", "after move", "after open"])
def test_an_upload_that_died_while_it_was_completed_can_be_deleted(user, bucket, watch, later, moment):
    file = sent_up(user)
    watch(at(moment, Killed()))
    with pytest.raises(Killed):
        complete(file, user)
    with pytest.raises(NotReady):
        delete(file, user)
    later(minutes=6)
    delete(file, user)
    check_nothing_stored(bucket)


@pytest.mark.parametrize("has_come", [False, True], ids=["before", "after"])
def test_an_upload_that_nobody_completes_ends_after_a_day(user, bucket, later, has_come):
    file = sent_up(user) if has_come else start(user).file
    later(hours=23, minutes=59)
    end_stale()
    assert sweep(older_than=0).uploads == sweep(older_than=0).orphans == 0
    assert quota.usage(user.id).reserved == len(CONTENT)
    later(minutes=2)
    with pytest.raises(UploadIncomplete):
        complete(file, user)
    assert sweep(dry_run=True).uploads == 1
    assert status_of(file.id) is FileStatus.PENDING
    end_stale()
    check_nothing_stored(bucket)


def test_bytes_that_come_after_the_end_are_swept(user, bucket):
    begun = start(user)
    delete(begun.file, user)
    assert send(begun.upload) == 200
    assert sweep(older_than=0).orphans == 1
    check_nothing_stored(bucket)


@pytest.mark.parametrize("has_come", [False, True], ids=["before", "after"])
def test_of_an_erased_account_no_open_upload_is_left(user, bucket, run_jobs, has_come):
    if has_come:
        sent_up(user)
    else:
        start(user)
    users.erase_user(user.id, actor_id=None)
    assert db.session.scalars(select(StorageUsage)).all() == []
    run_jobs()
    check_nothing_stored(bucket)


@pytest.mark.parametrize("moment", ["before move", "after move"])
def test_of_an_erased_account_no_upload_is_left_that_died_while_it_was_completed(user, bucket, watch, run_jobs, moment):
    file = sent_up(user)
    watch(at(moment, Killed()))
    with pytest.raises(Killed):
        complete(file, user)
    users.erase_user(user.id, actor_id=None)
    run_jobs()
    check_nothing_stored(bucket)


@pytest.mark.parametrize("moment", ["before move", "after move", "after open"])
def test_an_account_that_is_erased_while_it_completes_leaves_nothing(app, user, bucket, watch, run_jobs, moment):
    file = sent_up(user)

    def erase() -> None:
        with app.app_context():
            users.erase_user(user.id, actor_id=None)
            run_jobs()

    watch(at(moment, erase))
    with pytest.raises((UploadIncomplete, Unavailable)):
        complete(file, user)
    check_nothing_stored(bucket)


def test_bytes_whose_copy_ends_after_the_account_was_erased_are_not_kept(app, user, bucket, watch, run_jobs):
    file = sent_up(user)

    def erase() -> None:
        with app.app_context():
            key = str(incoming(file))
            users.erase_user(user.id, actor_id=None)
            run_jobs()
        bucket.put(key)  # as if the copy had begun before

    watch(at("before move", erase))
    with pytest.raises(Unavailable):
        complete(file, user)
    check_nothing_stored(bucket)


# --- What dies or fails while it is completed ------------------------------------------------------------------------


def half_a_move(bucket: Bucket, file: File) -> Callable[[], None]:
    def run() -> None:
        bucket.copy(str(incoming(file)), file.storage_key)
        raise Killed

    return run


DEATHS: dict[str, Callable[[Bucket, File], Any]] = {
    "before move": lambda _bucket, _file: Killed(),
    "in the middle of the move": half_a_move,
    "after move": lambda _bucket, _file: Killed(),
    "after open": lambda _bucket, _file: Killed(),
}


def die(file: File, user: User, bucket: Bucket, watch: Callable[..., None], moment: str) -> None:
    """Complete an upload and die at a moment."""
    if moment == "publishing":
        with broken("UPDATE files", Killed()), pytest.raises(Killed):
            complete(file, user)
        return
    where = "before move" if moment == "in the middle of the move" else moment
    watch(at(where, DEATHS[moment](bucket, file)))
    with pytest.raises(Killed):
        complete(file, user)


@pytest.mark.parametrize("moment", [*DEATHS, "publishing"])
def test_a_completion_that_died_is_done_by_the_next_after_a_while(user, bucket, watch, later, moment):
    file = sent_up(user)
    die(file, user, bucket, watch, moment)
    assert status_of(file.id) is FileStatus.PENDING
    with pytest.raises(UploadIncomplete):
        complete(file, user)
    later(minutes=6)
    ready = complete(file, user)
    assert (ready.status, ready.sha256, bucket.read(ready.storage_key)) == (FileStatus.READY, SHA256, CONTENT)
    check_books(bucket)


@pytest.mark.parametrize("moment", [*DEATHS, "publishing"])
def test_a_completion_that_died_and_is_not_taken_up_ends_after_a_day(user, bucket, watch, later, moment):
    file = sent_up(user)
    die(file, user, bucket, watch, moment)
    later(hours=24, minutes=1)
    end_stale()
    check_nothing_stored(bucket)


def test_a_file_and_the_end_of_its_upload_are_one_step(user, bucket):
    file = sent_up(user)
    with broken("DELETE FROM direct_uploads", Killed()), pytest.raises(Killed):
        complete(file, user)
    is_ready = status_of(file.id) is FileStatus.READY
    assert is_ready == (incoming(file) is None)
    check_counters()


@pytest.mark.parametrize("moment", ["before move", "after move", "after open"])
def test_when_the_bucket_fails_the_upload_stays_open(user, bucket, watch, moment):
    file = sent_up(user)
    watch(at(moment, Unavailable()))
    with pytest.raises(Unavailable):
        complete(file, user)
    assert complete(file, user).status is FileStatus.READY
    check_books(bucket)


@pytest.mark.parametrize("moment", ["before delete", "after delete"])
@pytest.mark.parametrize("came", [OTHER, CONTENT], ids=["other bytes", "a type not allowed"])
def test_when_the_bucket_fails_while_refused_bytes_are_deleted_they_are_not_accepted_later(
    user, bucket, watch, set_files, moment, came
):
    file = start(user).file
    bucket.put(str(incoming(file)), came)
    set_files(allowed_types=["image/*"])
    watch(at(moment, Unavailable()))
    with pytest.raises(Unavailable):
        complete(file, user)
    with pytest.raises(NotFound):
        complete(file, user)
    sweep(older_than=0)
    check_nothing_stored(bucket)


def test_bytes_that_vanish_between_the_move_and_the_check_can_be_sent_again(user, bucket, watch):
    begun = start(user)
    send(begun.upload)
    watch(at("after move", lambda: bucket.delete(begun.file.storage_key)))
    with pytest.raises(UploadIncomplete):
        complete(begun.file, user)
    with pytest.raises(UploadIncomplete):
        complete(begun.file, user)
    assert send(begun.upload) == 200
    complete(begun.file, user)
    check_books(bucket)


# --- Many at once ----------------------------------------------------------------------------------------------------


def test_of_many_completions_at_once_one_does_the_work(app, user, bucket, watch):
    file = sent_up(user)
    moves: list[str] = []
    watch(lambda moment: moves.append(moment) if moment == "before move" else None)
    owner_id = user.id
    ended = at_once(app, [lambda: direct.complete(file.id, owner_id=owner_id)] * 10)
    kinds = Counter(type(result) for result in ended)
    assert set(kinds) <= {File, UploadIncomplete}
    assert kinds[File] >= 1
    assert len(moves) == 1
    assert quota.usage(owner_id) == Usage(len(CONTENT), 0, 1 << 30, 1)
    assert complete(file, user).status is FileStatus.READY
    check_books(bucket)


def test_of_many_completions_of_other_bytes_none_makes_a_file(app, user, bucket):
    file = start(user).file
    bucket.put(str(incoming(file)), OTHER)
    owner_id = user.id
    ended = at_once(app, [lambda: direct.complete(file.id, owner_id=owner_id)] * 10)
    kinds = Counter(type(result) for result in ended)
    assert set(kinds) <= {Invalid, UploadIncomplete, NotFound}
    assert kinds[Invalid] == 1
    check_nothing_stored(bucket)


def test_a_completion_and_a_deletion_at_once_leave_a_whole_file_or_nothing(app, user, bucket, run_jobs):
    files = [sent_up(user, bytes([number]) * 100, declared_type="a/b") for number in range(1, 6)]
    caller = principal_of(user)

    def either(file_id: UUID) -> list[Callable[[], Any]]:
        return [
            lambda: direct.complete(file_id, owner_id=caller.id),
            lambda: service.delete_file(file_id, caller=caller),
        ]

    ended = at_once(app, [call for file in files for call in either(file.id)])
    assert {type(result) for result in ended} <= {File, type(None), NotFound, NotReady, UploadIncomplete, Unavailable}
    run_jobs()
    check_books(bucket)


def test_a_completion_that_was_too_slow_and_its_successor_make_one_file(app, user, bucket, watch, later):
    file = sent_up(user)
    owner_id = user.id
    successors: list[File] = []

    def overtake() -> None:
        later(minutes=6)
        with app.app_context():
            successors.append(direct.complete(file.id, owner_id=owner_id))

    watch(at("after open", overtake))
    with pytest.raises(Unavailable):
        direct.complete(file.id, owner_id=owner_id)
    assert [done.status for done in successors] == [FileStatus.READY]
    assert complete(file, user).status is FileStatus.READY
    check_books(bucket)


def test_no_connection_is_held_while_the_bucket_is_asked(user, bucket, watch):
    seen: list[bool] = []
    watch(lambda _moment: seen.append(holds_no_connection()))
    # As a request, which has looked at its session and account by then.
    users.get_user(user.id)
    first, second = start(user), start(user)
    bucket.put(str(incoming(first.file)), OTHER)
    send(second.upload)
    with pytest.raises(Invalid):
        complete(first.file, user)
    complete(second.file, user)
    assert len(seen) > 10
    assert all(seen)
