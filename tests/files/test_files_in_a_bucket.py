"""Files in a bucket: uploaded as everywhere, fetched by redirect, cleared up after, and refused while it is away."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from project.errors import Invalid, Unavailable
from project.files import quota, service, storage, variants
from project.files.models import File, FileStatus
from project.files.quota import Usage
from project.files.storage import new_incoming_key, new_key
from project.files.sweep import Swept, end_stale, sweep, verify
from project.users import service as users
from project.users.models import User
from tests.factories import make_user
from tests.files.asking import FILES, TEXT, a_file, code, form, relative, stored_file, upload
from tests.files.buckets import (
    at,
    check_books,
    check_nothing_stored,
    parameters,
    request,
    sent_up,
)
from tests.files.samples import HTML, PDF, SVG, picture
from tests.files.uploading import (
    CONTENT,
    WAYS,
    Killed,
    content_of,
    holds_no_connection,
    principal_of,
    set_row,
    status_of,
)

PNG = picture("PNG", (400, 200))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# Nobody listens there.
AWAY = "s3://files?endpoint=http://127.0.0.1:1&region=us-east-1"
NOBODY: dict[str, str] = {}


@pytest.fixture
def user(in_app, bucket) -> User:
    """An account that stores files."""
    return in_app(make_user)


@pytest.fixture(params=WAYS)
def send(request) -> Callable[..., File]:
    """Upload in each of the ways that go through the server."""
    return WAYS[request.param]


# --- Uploads ---------------------------------------------------------------------------------------------------------


def test_what_is_uploaded_is_in_the_bucket(session, user, bucket, send):
    file = send(user, PNG, filename="../a.png")
    assert (file.status, file.content_type, file.width, file.height) == (FileStatus.READY, "image/png", 400, 200)
    assert bucket.objects() == {file.storage_key: len(PNG)}
    assert bucket.read(file.storage_key) == content_of(file) == PNG
    assert bucket.type_of(file.storage_key) == "image/png"
    assert quota.usage(user.id) == Usage(len(PNG), 0, 1 << 30, 1)
    check_books(bucket)


def test_what_is_refused_is_not_in_the_bucket(session, user, bucket, send):
    with pytest.raises(Invalid):
        send(user, sha256="0" * 64)
    check_nothing_stored(bucket)


@pytest.mark.parametrize("moment", ["before put", "after put"])
@pytest.mark.parametrize("error", [Unavailable, Killed])
def test_when_storing_fails_nothing_is_left(session, user, bucket, watch, send, moment, error):
    watch(at(moment, error()))
    with pytest.raises(error):
        send(user)
    check_nothing_stored(bucket)


def test_an_upload_of_an_account_that_is_erased_while_it_is_stored_leaves_nothing(app, session, user, bucket, watch):
    def erase() -> None:
        with app.app_context():
            users.erase_user(user.id, actor_id=None)

    watch(at("after put", erase))
    with pytest.raises(Unavailable):
        WAYS["raw"](user)
    check_nothing_stored(bucket)


@pytest.mark.parametrize("way", ["form", "raw"])
def test_an_upload_is_answered_as_with_files_on_disk(client, as_user, in_app, set_files, bucket, files_root, way):
    caller = as_user()

    def answered() -> dict[str, Any]:
        path = {"form": FILES, "raw": f"{FILES}/raw?filename=hello.txt"}[way]
        sent = {"form": form(a_file()), "raw": {"data": TEXT, "content_type": "text/plain"}}[way]
        response = client.post(path, headers=caller, **sent)
        assert response.status_code == 201
        volatile = {"id", "content_url", "created_at", "updated_at"}
        return {name: value for name, value in response.json["data"].items() if name not in volatile}

    in_bucket = answered()
    in_app(check_books, bucket)
    set_files(storage_url=files_root.as_uri())
    assert answered() == in_bucket


def test_the_configuration_tells_that_clients_may_upload_directly(client, as_user, bucket):
    assert client.get(f"{FILES}/config", headers=as_user()).json["data"]["direct_upload"] is True


# --- Downloads -------------------------------------------------------------------------------------------------------


def redirected(client: FlaskClient, path: str, headers: dict[str, str] = NOBODY) -> TestResponse:
    """Ask for content, and check what every redirect to the bucket has."""
    response = client.get(path, headers=headers)
    assert (response.status_code, response.data) == (302, b""), response.data
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert not {"ETag", "Content-Disposition", "Accept-Ranges"} & set(response.headers.keys())
    assert parameters(response.headers["Location"])["X-Amz-Expires"] == "60"
    return response


def fetched(client: FlaskClient, path: str, headers: dict[str, str] = NOBODY, **sent: str) -> Any:
    """Ask for content and follow to the bucket, with the same headers but the token."""
    sent = {name.replace("_", "-"): value for name, value in sent.items()}
    return request("GET", redirected(client, path, {**headers, **sent}).headers["Location"], headers=sent)


@pytest.mark.parametrize("disposition", ["", "inline", "attachment"])
@pytest.mark.parametrize(
    ("filename", "content_type", "content"),
    [
        ("kůň, žlutý\u202e.txt", "text/plain", "Žluťoučký kůň".encode()),
        ('a "b";.png', "image/png", PNG),
        ("a.svg", "image/svg+xml", SVG),
        ("a.html", "text/html", HTML),
        ("a.pdf", "application/pdf", PDF),
    ],
)
def test_the_bucket_says_of_a_file_what_the_application_says_of_it(
    client, as_user, bucket, filename, content_type, content, disposition
):
    caller = as_user()
    file = upload(client, caller, content, filename=filename, content_type=content_type)
    path = f"{FILES}/{file['id']}/content" + (f"?disposition={disposition}" if disposition else "")
    told = client.head(path, headers=caller)
    came = fetched(client, path, caller)
    assert (told.status_code, came.status_code, came.content) == (200, 200, content)
    for name in ("Content-Type", "Content-Disposition", "Content-Length", "Accept-Ranges"):
        assert came.headers[name] == told.headers[name], name
    # Neither may the bucket's answer stay in a cache.
    assert came.headers["Cache-Control"] == "private, no-store"


def test_a_part_is_what_the_bucket_is_asked_for(client, as_user, bucket):
    caller = as_user()
    path = f"{FILES}/{upload(client, caller, PNG, content_type='image/png')['id']}/content"
    part = fetched(client, path, caller, Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, PNG[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(PNG)}"
    assert fetched(client, path, caller).content == PNG


def test_what_has_no_bytes_is_answered_by_the_application_itself(client, as_user, bucket):
    caller = as_user()
    file = upload(client, caller)
    path, tag = f"{FILES}/{file['id']}/content", f'"{file["sha256"]}"'

    def ask(method: str = "GET", **sent: str) -> TestResponse:
        response = client.open(path, method=method, headers={**caller, **sent})
        assert "Location" not in response.headers
        return response

    head = ask("HEAD")
    assert (head.status_code, head.headers["ETag"], head.headers["Content-Length"]) == (200, tag, str(len(TEXT)))
    same = ask(**{"If-None-Match": tag})
    assert (same.status_code, same.headers["ETag"]) == (304, tag)
    assert code(ask(**{"If-Match": '"other"'})) == (412, "precondition_failed")
    beyond = ask(Range=f"bytes={len(TEXT)}-")
    assert code(beyond) == (416, "range_not_satisfiable")
    assert beyond.headers["Content-Range"] == f"bytes */{len(TEXT)}"


def test_everybody_fetches_what_they_may_read(client, as_user, as_staff, bucket):
    owner, stranger = as_user(), as_user()
    for visibility, readers in (("private", [owner]), ("public", [owner, stranger, as_staff, NOBODY])):
        path = f"{FILES}/{upload(client, owner, visibility=visibility)['id']}"
        for reader in readers:
            assert fetched(client, f"{path}/content", reader).content == TEXT
        for reader in (owner, stranger, as_staff, NOBODY):
            if reader not in readers:
                assert code(client.get(f"{path}/content", headers=reader)) == (404, "not_found")
        signed = client.post(f"{path}/signed-url", json={"disposition": "inline"}, headers=owner).json["data"]["url"]
        came = fetched(client, relative(signed))
        assert (came.content, came.headers["Content-Disposition"].partition(";")[0]) == (TEXT, "inline")


def test_every_redirect_of_a_share_counts(client, as_user, bucket):
    owner = as_user()
    path = f"{FILES}/{upload(client, owner)['id']}/shares"
    share = client.post(path, json={"max_downloads": 3}, headers=owner).json["data"]
    link = relative(share["url"])

    def downloads() -> int:
        return client.get(path, headers=owner).json["data"][0]["downloads"]

    tag = client.head(link).headers["ETag"]
    assert client.get(link, headers={"If-None-Match": tag}).status_code == 304
    assert code(client.get(link, headers={"Range": f"bytes={len(TEXT)}-"})) == (416, "range_not_satisfiable")
    assert downloads() == 0
    assert fetched(client, link).content == TEXT
    assert fetched(client, link).content == TEXT
    # What is fetched there nobody sees: a part may be followed by the whole.
    assert fetched(client, link, Range="bytes=1-").content == TEXT[1:]
    assert downloads() == 3
    assert code(client.get(link)) == (410, "share_expired")


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_a_thumbnail_is_fetched_from_the_bucket_and_made_once(client, as_user, bucket, in_app, kind):
    owner = as_user()
    file = upload(client, owner, PNG, filename="a.png", content_type="image/png")
    path = f"{FILES}/{file['id']}/thumbnail?size=64&format={kind}"
    came = fetched(client, path, owner)
    assert came.headers["Content-Type"] == f"image/{kind}"
    assert came.headers["Content-Disposition"] == f'inline; filename="a.png.{kind}"'
    with Image.open(BytesIO(came.content)) as small:
        assert (small.format, small.size) == (kind.upper(), (64, 32))
    objects = bucket.objects()
    assert len(objects) == 2
    assert fetched(client, path, owner).content == came.content
    told = client.head(path, headers=owner)
    assert (told.status_code, told.headers["Content-Length"]) == (200, str(len(came.content)))
    assert bucket.objects() == objects
    in_app(check_books, bucket)


def test_a_thumbnail_whose_bytes_are_lost_is_made_again(client, as_user, bucket, in_app):
    owner = as_user()
    file = upload(client, owner, PNG, content_type="image/png")
    path = f"{FILES}/{file['id']}/thumbnail?size=64"
    first = fetched(client, path, owner)
    original = in_app(stored_file, file["id"]).storage_key
    bucket.delete(*(key for key in bucket.objects() if key != original))
    assert fetched(client, path, owner).content == first.content
    in_app(check_books, bucket)


# --- Deleting and clearing up ----------------------------------------------------------------------------------------


def test_a_deleted_file_is_gone_at_once_and_its_objects_soon_after(client, as_user, bucket, in_app, run_jobs):
    owner = as_user()
    path = f"{FILES}/{upload(client, owner, PNG, content_type='image/png', visibility='public')['id']}"
    redirected(client, f"{path}/thumbnail?size=64")
    assert client.delete(path, headers=owner).status_code == 204
    assert code(client.get(f"{path}/content", headers=owner)) == (404, "not_found")
    assert len(bucket.objects()) == 2
    assert client.get(f"{FILES}/usage", headers=owner).json["data"]["used"] == len(PNG)
    run_jobs()
    assert client.get(f"{FILES}/usage", headers=owner).json["data"]["used"] == 0
    in_app(check_nothing_stored, bucket)


@pytest.mark.parametrize("moment", ["before delete", "after delete"])
def test_a_deletion_that_failed_half_way_is_finished_later(session, user, bucket, watch, later, run_jobs, moment):
    file = WAYS["raw"](user, PNG)
    variants.get_thumbnail(file, size=64, kind="webp")
    service.delete_file(file.id, caller=principal_of(user))
    watch(at(moment, Unavailable()))
    with pytest.raises(Unavailable):
        run_jobs()
    assert status_of(file.id) is FileStatus.DELETING
    assert quota.usage(user.id).used == len(PNG)
    later(minutes=16)
    end_stale()
    check_nothing_stored(bucket)


def test_of_an_erased_account_nothing_stays_in_the_bucket(session, user, bucket, run_jobs):
    variants.get_thumbnail(WAYS["form"](user, PNG), size=64, kind="webp")
    sent_up(user)
    users.erase_user(user.id, actor_id=None)
    run_jobs()
    check_nothing_stored(bucket)


def test_a_sweep_clears_up_what_crashes_leave_in_a_bucket(session, user, bucket, later):
    kept = WAYS["raw"](user, PNG)
    variants.get_thumbnail(kept, size=64, kind="webp")
    died, deleted, lost = (WAYS["raw"](user) for _ in range(3))
    set_row(died, status=FileStatus.PENDING, reserved=len(CONTENT))
    set_row(deleted, status=FileStatus.DELETING)
    bucket.delete(lost.storage_key)
    for key in (new_key(), new_incoming_key(), "notes.txt"):
        bucket.put(key)
    (storage.storage().incoming_parts / f"{kept.id}.part").write_bytes(CONTENT)
    before = bucket.objects()
    # What is young may be somebody's who is still at it; a row without an object never is.
    assert sweep(dry_run=True) == Swept(missing=1, recounted=1)
    later(minutes=16)
    everything = Swept(uploads=1, parts=1, deleted=1, orphans=2, missing=1, recounted=1)
    assert sweep(dry_run=True) == everything
    assert bucket.objects() == before
    # The upload that died takes its object along, which was an orphan of nobody while its row was there.
    assert sweep() == everything
    assert sweep() == Swept()
    assert [status_of(file.id) for file in (kept, died, deleted, lost)] == [FileStatus.READY, None, None, "missing"]
    bucket.delete("notes.txt")
    set_row(lost, status=FileStatus.DELETING)
    sweep(older_than=0)
    check_books(bucket)


def test_a_file_whose_object_is_lost_is_told_so_once_a_sweep_has_seen_it(client, as_user, bucket, in_app):
    owner = as_user()
    file = upload(client, owner)
    path = f"{FILES}/{file['id']}/content"
    bucket.delete(in_app(stored_file, file["id"]).storage_key)
    assert fetched(client, path, owner).status_code in {403, 404}
    assert in_app(sweep).missing == 1
    for method in ("GET", "HEAD"):
        assert client.open(path, method=method, headers=owner).status_code == 410
    assert code(client.get(path, headers=owner)) == (410, "file_lost")


def test_the_command_line_verifies_and_sweeps_a_bucket(app, in_app, user, bucket):
    kept, damaged, lost = (in_app(WAYS["raw"], user) for _ in range(3))
    run = app.test_cli_runner().invoke
    assert run(args=["files", "verify"]).exit_code == 0
    bucket.put(damaged.storage_key, CONTENT[::-1])
    bucket.delete(lost.storage_key)
    orphan = new_key()
    bucket.put(orphan)
    found = run(args=["files", "verify"])
    assert found.exit_code == 1
    assert f"{damaged.id}: its bytes are not those that were stored" in found.output
    assert f"{lost.id}: its bytes are missing" in found.output
    assert str(kept.id) not in found.output
    swept = run(args=["files", "sweep", "--older-than", "0"])
    assert swept.exit_code == 0, swept.output
    assert bucket.objects().keys() == {kept.storage_key, damaged.storage_key}
    assert in_app(status_of, lost.id) is FileStatus.MISSING


def test_no_connection_is_held_while_the_bucket_is_asked(session, user, bucket, watch, run_jobs):
    seen: dict[str, bool] = {}
    watch(lambda moment: seen.update({moment: holds_no_connection() and seen.get(moment, True)}))
    file = next(WAYS[way](user, PNG) for way in WAYS)
    for _ in range(2):
        variants.get_thumbnail(file, size=64, kind="webp")
    assert [found.problem for found in verify()] == [None]
    service.delete_file(file.id, caller=principal_of(user))
    run_jobs()
    assert {"before put", "before open", "before find", "before delete"} <= seen.keys()
    assert [moment for moment, was_free in seen.items() if not was_free] == []


# --- While the bucket is away ----------------------------------------------------------------------------------------


def unavailable(response: TestResponse) -> bool:
    return code(response) == (503, "service_unavailable") and response.headers["Retry-After"].isdecimal()


def test_while_the_bucket_is_away_uploads_are_refused_and_nothing_is_left(client, as_user, set_files, bucket, in_app):
    set_files(storage_url=AWAY)
    caller = as_user()
    assert unavailable(client.post(FILES, headers=caller, **form(a_file())))
    assert unavailable(client.post(f"{FILES}/raw", headers=caller, data=TEXT, content_type="text/plain"))
    in_app(check_nothing_stored, bucket)
    assert client.get(f"{FILES}/config", headers=caller).status_code == 200


def test_a_direct_upload_waits_until_the_bucket_is_back(client, as_user, set_files, bucket, in_app):
    caller = as_user()
    digest = hashlib.sha256(TEXT).hexdigest()
    body = {"filename": "a.txt", "size": len(TEXT), "content_type": "text/plain", "sha256": digest}
    begun = client.post(f"{FILES}/direct", json=body, headers=caller).json["data"]
    request("PUT", begun["upload"]["url"], headers=begun["upload"]["headers"], data=TEXT)
    path = f"{FILES}/{begun['file']['id']}"
    set_files(storage_url=AWAY)
    assert unavailable(client.post(f"{path}/complete", headers=caller))
    assert client.get(path, headers=caller).json["data"]["status"] == "pending"
    set_files(storage_url=bucket.url)
    assert client.post(f"{path}/complete", headers=caller).status_code == 200
    in_app(check_books, bucket)


def test_while_the_bucket_is_away_clients_are_sent_there_and_files_deleted_later(
    client, as_user, set_files, bucket, in_app, run_jobs, later
):
    owner = as_user()
    path = f"{FILES}/{upload(client, owner, PNG, content_type='image/png')['id']}"
    set_files(storage_url=AWAY)
    redirected(client, f"{path}/content", owner)
    assert client.head(f"{path}/content", headers=owner).status_code == 200
    assert unavailable(client.get(f"{path}/thumbnail?size=64", headers=owner))
    assert client.delete(path, headers=owner).status_code == 204
    with suppress(Unavailable):
        run_jobs()
    assert code(client.get(f"{path}/content", headers=owner)) == (404, "not_found")
    assert client.get(f"{FILES}/usage", headers=owner).json["data"]["used"] == len(PNG)
    set_files(storage_url=bucket.url)
    later(minutes=16)
    in_app(end_stale)
    in_app(check_nothing_stored, bucket)


def test_a_sweep_takes_no_file_for_lost_while_the_bucket_is_away(app, in_app, user, bucket, set_files):
    file = in_app(WAYS["raw"], user)
    set_files(storage_url=AWAY)
    for command in ("sweep", "verify"):
        result = app.test_cli_runner().invoke(args=["files", command])
        assert result.exit_code == 1
        assert "storage cannot be used" in result.output
    assert in_app(status_of, file.id) is FileStatus.READY
    in_app(check_books, bucket)
