from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Barrier

import pytest
from PIL import Image
from sqlalchemy import select

from project.database import db
from project.errors import Unavailable
from project.files.models import FileStatus, FileVariant
from project.files.storage import LocalStorage
from tests.files.asking import TEXT, code, errors, on_disk, set_status, stored_file, upload, without_request
from tests.files.samples import PDF, SVG, gif, picture, png

FILES = "/v1/files"
ID = "01234567-89ab-7cde-8f01-23456789abcd"
SIZES = (64, 128, 256, 512, 1024)
PHOTO = picture("PNG", (600, 300))


@pytest.fixture
def ann(as_user, files_root):
    """The owner of the pictures."""
    return as_user(email="ann@example.com")


@pytest.fixture
def photo(client, ann):
    """A private picture of Ann's, 600 pixels wide."""
    return upload(client, ann, PHOTO, filename="holiday.png", content_type="image/png")


@pytest.fixture
def look(client, ann):
    """Look at a thumbnail, as its owner unless told otherwise."""

    def get(file: dict, query: str = "", headers=None, method: str = "GET", caller=ann):
        sent = {**(caller or {}), **(headers or {})}
        return client.open(f"{FILES}/{file['id']}/thumbnail?{query}", method=method, headers=sent, buffered=True)

    return get


@pytest.fixture
def variants(in_app):
    """The thumbnails that are kept: the specs of rows, and their keys."""
    rows = select(FileVariant.spec, FileVariant.storage_key).order_by(FileVariant.spec)
    return lambda: in_app(lambda: [tuple(row) for row in db.session.execute(rows)])


def size_of(content: bytes) -> tuple[str, tuple[int, int]]:
    """What a thumbnail is, and how large."""
    with Image.open(BytesIO(content)) as image:
        return str(image.format), image.size


# --- who may is tested with the content; what is shown ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_a_thumbnail_is_as_long_as_asked_and_never_longer_than_the_picture(look, photo, variants, kind):
    for size in SIZES:
        response = look(photo, f"size={size}&format={kind}")
        assert (response.status_code, response.content_type) == (200, f"image/{kind}")
        longest = min(size, 600)
        assert size_of(response.data) == (kind.upper(), (longest, longest // 2))
    assert [spec for spec, _ in variants()] == sorted(f"{size}-{kind}" for size in SIZES)


def test_a_thumbnail_is_a_webp_of_256_pixels_unless_told_otherwise(look, photo, variants):
    answers = [look(photo, query).data for query in ("", "size=256", "format=webp", "format=webp&size=256")]
    assert len(set(answers)) == len(variants()) == 1
    assert size_of(answers[0]) == ("WEBP", (256, 128))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_all_four_kinds_of_pictures_have_thumbnails(client, ann, look, kind):
    file = upload(client, ann, picture(kind, (100, 200)), content_type=f"image/{kind.lower()}")
    assert (file["width"], file["height"]) == (100, 200)
    assert file["thumbnail_url"] == f"http://localhost{FILES}/{file['id']}/thumbnail"
    assert size_of(look(file, "size=64").data) == ("WEBP", (32, 64))


@pytest.mark.parametrize(
    ("visibility", "cache", "policy"),
    [("private", "private, no-cache", "same-site"), ("public", "public, max-age=300", "cross-origin")],
)
def test_a_thumbnail_says_what_may_be_done_with_it(client, ann, look, visibility, cache, policy):
    file = upload(client, ann, PHOTO, filename="Zoë.png", content_type="image/png", visibility=visibility)
    response, head = look(file, "size=64"), look(file, "size=64", method="HEAD")
    expected = {
        "Content-Type": "image/webp",
        "Content-Length": str(len(response.data)),
        "Content-Disposition": "inline; filename=\"Zoe.png.webp\"; filename*=UTF-8''Zo%C3%AB.png.webp",
        "ETag": f'"{file["sha256"]}-64-webp"',
        "Accept-Ranges": "bytes",
        "Cache-Control": cache,
        "Cross-Origin-Resource-Policy": policy,
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    for answer in (response, head):
        assert {name: answer.headers[name] for name in expected} == expected
        # Of the picture it would be wrong, and of the thumbnail nobody has said it.
        assert "Repr-Digest" not in answer.headers
    assert head.data == b""
    saved = look(file, "disposition=attachment&format=jpeg")
    assert saved.headers["Content-Disposition"].startswith('attachment; filename="Zoe.png.jpeg"')


def test_conditions_and_ranges_of_thumbnails_are_heeded(look, photo):
    whole = look(photo)
    tag = whole.headers["ETag"]
    unchanged = look(photo, headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.data, unchanged.headers["ETag"]) == (304, b"", tag)
    # The tag of another thumbnail is another.
    assert look(photo, "size=64", {"If-None-Match": tag}).status_code == 200
    assert look(photo, "format=jpeg", {"If-None-Match": tag}).status_code == 200
    part = look(photo, headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.data) == (206, whole.data[:4])
    assert code(look(photo, headers={"If-Match": '"x"'})) == (412, "precondition_failed")
    assert code(look(photo, headers={"Range": "bytes=99999-"})) == (416, "range_not_satisfiable")


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("size=100", {"/query/size": "invalid_choice"}),
        ("size=0", {"/query/size": "invalid_choice"}),
        ("size=2048", {"/query/size": "invalid_choice"}),
        ("size=-64", {"/query/size": "invalid_type"}),
        ("size=64.0", {"/query/size": "invalid_type"}),
        ("size=", {"/query/size": "invalid_type"}),
        ("size=٦٤", {"/query/size": "invalid_type"}),
        ("size=64&size=64", {"/query/size": "repeated_parameter"}),
        ("format=png", {"/query/format": "invalid_choice"}),
        ("format=JPEG", {"/query/format": "invalid_choice"}),
        ("format=", {"/query/format": "invalid_choice"}),
        ("width=64", {"/query/width": "unknown_field"}),
        ("size=1&format=gif", {"/query/size": "invalid_choice", "/query/format": "invalid_choice"}),
    ],
)
def test_only_the_sizes_and_formats_that_are_listed_can_be_had(look, photo, variants, query, faults):
    for file in (photo, {"id": ID}):
        assert errors(look(file, query)) == faults
    assert variants() == []


# --- what has no thumbnail --------------------------------------------------------------------------------------------

NO_PICTURES = {
    "text": (TEXT, "text/plain"),
    "svg": (SVG, "image/svg+xml"),
    "pdf": (PDF, "application/pdf"),
    "the beginning of a png": (PHOTO[:100], "image/png"),
    "a gif and a script": (b"GIF89a=1;alert(1)//", "image/gif"),
    "a jpeg of nothing": (b"\xff\xd8\xff\xe0" + bytes(100), "image/jpeg"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("content", "declared"), NO_PICTURES.values(), ids=list(NO_PICTURES))
def test_what_is_no_picture_has_no_thumbnail(client, ann, look, variants, in_app, content, declared, method):
    file = upload(client, ann, content, content_type=declared, visibility="public")
    before = in_app(on_disk)
    for caller in (ann, None):
        response = look(file, method=method, caller=caller)
        assert response.status_code == 422
        if method == "GET":
            assert code(response) == (422, "not_an_image")
            assert [error["code"] for error in response.json["errors"]] == ["not_an_image"]
    assert (variants(), in_app(on_disk)) == ([], before)


@pytest.mark.parametrize("content", [png((60_000, 60_000)), gif((65_535, 65_535))], ids=["png", "gif"])
def test_a_picture_that_would_take_too_much_memory_has_no_thumbnail(client, ann, look, variants, content):
    file = upload(client, ann, content, content_type="image/png")
    assert file["width"] >= 60_000
    assert code(look(file)) == (422, "image_too_large")
    assert variants() == []


def test_that_a_file_is_no_picture_is_told_to_those_only_who_may_read_it(client, ann, as_user, as_admin, look):
    file = upload(client, ann)
    for caller in (None, as_user(), as_admin):
        response = look(file, caller=caller)
        assert code(response) == (404, "not_found")
        assert without_request(response) == without_request(look({"id": ID}, caller=caller))


# --- kept and made again ----------------------------------------------------------------------------------------------


def test_a_thumbnail_is_made_once(look, photo, variants, files_root, in_app):
    first = look(photo, "size=64")
    kept = variants()
    assert [spec for spec, _ in kept] == ["64-webp"]
    # From here on it could not be made.
    (files_root / in_app(lambda: stored_file(photo["id"]).storage_key)).unlink()
    for method in ("GET", "HEAD"):
        again = look(photo, "size=64", method=method)
        assert (again.status_code, again.headers["ETag"]) == (200, first.headers["ETag"])
        assert again.data in {first.data, b""}
    assert variants() == kept


@pytest.mark.parametrize("query", ["", "size=64"])
def test_of_a_lost_picture_no_thumbnail_is_made(look, photo, files_root, in_app, query):
    (files_root / in_app(lambda: stored_file(photo["id"]).storage_key)).unlink()
    assert code(look(photo, query)) == (410, "file_lost")
    in_app(set_status, photo["id"], FileStatus.MISSING)
    assert code(look(photo, query)) == (410, "file_lost")


def test_a_thumbnail_that_is_lost_is_made_again(look, photo, variants, files_root, in_app):
    first = look(photo)
    ((_, key),) = variants()
    (files_root / key).unlink()
    again = look(photo)
    assert (again.status_code, again.data, again.headers["ETag"]) == (200, first.data, first.headers["ETag"])
    ((_, made),) = variants()
    assert made != key
    assert in_app(on_disk) == {made, in_app(lambda: stored_file(photo["id"]).storage_key)}


def test_a_thumbnail_takes_nothing_of_the_quota_and_goes_with_its_file(client, ann, look, photo, run_jobs, in_app):
    for query in ("", "size=64", "format=jpeg"):
        look(photo, query)
    usage = client.get("/v1/files/usage", headers=ann).json["data"]
    assert (usage["used"], usage["file_count"]) == (len(PHOTO), 1)
    assert len(in_app(on_disk)) == 4
    assert client.delete(f"{FILES}/{photo['id']}", headers=ann).status_code == 204
    run_jobs()
    assert in_app(on_disk) == set()


def test_of_a_thumbnail_that_several_ask_for_at_once_one_is_kept(app, ann, photo, variants, in_app):
    ready = Barrier(4)

    def get(_: int) -> tuple[int, bytes]:
        ready.wait(30)
        response = app.test_client().get(f"{FILES}/{photo['id']}/thumbnail", headers=ann, buffered=True)
        return response.status_code, response.data

    with ThreadPoolExecutor(4) as threads:
        answers = Counter(threads.map(get, range(4)))
    assert [(status, count) for (status, _), count in answers.items()] == [(200, 4)]
    ((_, key),) = variants()
    assert in_app(on_disk) == {key, in_app(lambda: stored_file(photo["id"]).storage_key)}


class Slow(LocalStorage):
    """A storage in which the pictures of several wait for each other before they are put."""

    everybody = Barrier(3)

    def put(self, *args, **kwargs) -> None:
        """Wait, so that all have looked for a row and found none."""
        if kwargs["content_type"] == "image/webp":
            self.everybody.wait(30)
        super().put(*args, **kwargs)


def test_whoever_is_late_with_a_thumbnail_uses_that_of_the_first(app, ann, photo, replace_storage, variants, in_app):
    replace_storage(Slow)

    def get(_: int) -> tuple[int, str]:
        response = app.test_client().get(f"{FILES}/{photo['id']}/thumbnail", headers=ann, buffered=True)
        return response.status_code, response.headers["ETag"]

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(get, range(3))) == {(200, f'"{photo["sha256"]}-256-webp"')}
    ((_, key),) = variants()
    assert in_app(on_disk) == {key, in_app(lambda: stored_file(photo["id"]).storage_key)}


class Full(LocalStorage):
    """A storage that takes nothing more."""

    def put(self, *_args, **_kwargs) -> None:
        """Refuse."""
        raise Unavailable("The storage is full.")


def test_a_thumbnail_that_cannot_be_kept_is_503(look, photo, replace_storage, variants, in_app):
    before = in_app(on_disk)
    replace_storage(Full)
    response = look(photo)
    assert code(response) == (503, "service_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    assert (variants(), in_app(on_disk)) == ([], before)


def test_thumbnails_spend_the_budget_of_downloads(look, photo):
    for method in ("GET", "HEAD"):
        assert look(photo, method=method).headers["RateLimit-Policy"].startswith('"download";')
