import base64
import hashlib

import pytest
from sqlalchemy import func, select

from project.database import db
from project.files.models import File
from tests.files.asking import BOUNDARY, TEXT, Part, a_file, code, errors, form, on_disk, relative, upload
from tests.files.samples import picture

FILES = "/v1/files"
RAW = "/v1/files/raw"
DIRECT = "/v1/files/direct"
SHA256 = hashlib.sha256(TEXT).hexdigest()
WRONG = hashlib.sha256(b"other bytes").hexdigest()
PNG = picture("PNG", (40, 20))
DIRECT_BODY = {"filename": "a.png", "size": 10, "content_type": "image/png", "sha256": SHA256}
COMPLETE = f"{FILES}/01234567-89ab-7cde-8f01-23456789abcd/complete"


@pytest.fixture
def kept(in_app):
    """What is kept of uploads: rows, and objects or parts on the disk."""

    def look() -> tuple[int | None, set[str]]:
        return db.session.scalar(select(func.count()).select_from(File)), on_disk()

    return lambda: in_app(look)


def as_digest(sha256: str) -> str:
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


# --- who may, and what is answered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [form(a_file()), {"data": b"x", "content_type": "text/plain"}, {"json": DIRECT_BODY}])
@pytest.mark.parametrize("path", [FILES, RAW, DIRECT, COMPLETE])
def test_uploading_needs_a_token(client, kept, path, sent):
    before = kept()
    assert code(client.post(path, **sent)) == (401, "token_required")
    assert code(client.post(path, headers={"Authorization": "Bearer x.y.z"}, **sent)) == (401, "invalid_token")
    assert kept() == before


def test_a_file_in_a_form_is_answered_with_all_that_is_known_of_it(client, as_user):
    caller = as_user()
    parts = [
        Part("visibility", "public"),
        a_file(PNG, "holiday.png", "image/png"),
        Part("purpose", "avatar"),
        Part("metadata", '{"album": "summer", "für": "Zoë"}'),
        Part("sha256", hashlib.sha256(PNG).hexdigest()),
    ]
    response = client.post(FILES, headers=caller, **form(*parts))
    assert response.status_code == 201
    data = response.json["data"]
    path = f"{FILES}/{data['id']}"
    assert response.json == {
        "data": {
            "id": data["id"],
            "filename": "holiday.png",
            "size": len(PNG),
            "content_type": "image/png",
            "declared_type": "image/png",
            "sha256": hashlib.sha256(PNG).hexdigest(),
            "status": "ready",
            "visibility": "public",
            "purpose": "avatar",
            "metadata": {"album": "summer", "für": "Zoë"},
            "width": 40,
            "height": 20,
            "content_url": f"http://localhost{path}/content",
            "thumbnail_url": f"http://localhost{path}/thumbnail",
            "owner_id": str(caller.user.id),
            "created_at": data["created_at"],
            "updated_at": data["updated_at"],
        }
    }
    assert data["created_at"] <= data["updated_at"]
    assert response.headers["Location"] == path
    assert response.headers["Cache-Control"] == "no-store"
    found = client.get(path, headers=caller)
    assert (found.json, found.headers["ETag"]) == (response.json, response.headers["ETag"])
    content = client.get(relative(data["content_url"]), buffered=True)
    assert (content.status_code, content.data) == (200, PNG)


def test_a_form_with_nothing_but_a_file_has_defaults(client, as_user):
    caller = as_user()
    data = client.post(FILES, headers=caller, **form(a_file(content_type=None))).json["data"]
    assert (data["visibility"], data["purpose"], data["metadata"]) == ("private", None, {})
    assert (data["width"], data["height"], data["thumbnail_url"]) == (None, None, None)
    # Nothing was declared, and a text without a signature is only believed where it was.
    assert (data["content_type"], data["declared_type"]) == ("application/octet-stream", "application/octet-stream")


def test_a_raw_body_is_answered_like_a_form(client, as_user):
    caller = as_user()
    query = {"filename": "holiday.png", "visibility": "public", "purpose": "avatar"}
    headers = {**caller, "Content-Digest": as_digest(hashlib.sha256(PNG).hexdigest())}
    raw = client.post(RAW, query_string=query, data=PNG, content_type="image/png", headers=headers)
    assert (raw.status_code, raw.headers["Location"]) == (201, f"{FILES}/{raw.json['data']['id']}")
    same = upload(client, caller, PNG, content_type="image/png", **query)
    volatile = {"id", "content_url", "thumbnail_url", "created_at", "updated_at"}
    told = [{name: value for name, value in data.items() if name not in volatile} for data in (raw.json["data"], same)]
    assert told[0] == told[1]
    assert client.get(raw.headers["Location"], headers=caller).headers["ETag"] == raw.headers["ETag"]


def test_a_raw_body_with_nothing_said_of_it_is_a_private_file(client, as_user):
    response = client.post(RAW, data=b"\0\1", content_type="text/plain; charset=latin-1", headers=as_user())
    data = response.json["data"]
    assert (data["filename"], data["visibility"], data["purpose"], data["metadata"]) == ("file", "private", None, {})
    assert (data["content_type"], data["declared_type"]) == ("application/octet-stream", "text/plain")


def test_what_was_declared_and_what_it_is_are_both_told(client, as_user):
    data = upload(client, as_user(), PNG, filename="notes.txt", content_type="Text/Plain; charset=x")
    assert (data["declared_type"], data["content_type"], data["width"]) == ("text/plain", "image/png", 40)


# --- forms that are refused -------------------------------------------------------------------------------------------

NOT_CHOSEN = Part("file", b"", "", "application/octet-stream")
REFUSED_FORMS = {
    "nothing": ([], {"/file": "file_required"}),
    "no file": ([Part("purpose", "x")], {"/file": "file_required"}),
    "a text named file": ([Part("file", "hello")], {"/file": "file_required"}),
    "no file was chosen": ([NOT_CHOSEN], {"/file": "file_required"}),
    "an empty file": ([a_file(b"")], {"/file": "empty_file"}),
    "two files": ([a_file(), a_file(b"other")], {"/file": "repeated_parameter"}),
    "a file and one not chosen": ([a_file(), NOT_CHOSEN], {"/file": "repeated_parameter"}),
    "a file and a text": ([Part("file", "x"), a_file()], {"/file": "repeated_parameter"}),
    "a file of another name": ([Part("photo", b"x", "a")], {"/photo": "unknown_field", "/file": "file_required"}),
    "a second file of another name": ([a_file(), Part("photo", b"x", "a")], {"/photo": "unknown_field"}),
    "File": ([Part("File", b"x", "a")], {"/File": "unknown_field", "/file": "file_required"}),
    "file[]": ([Part("file[]", b"x", "a")], {"/file[]": "unknown_field", "/file": "file_required"}),
    "no name": ([a_file(), Part("", "x")], {"/": "unknown_field"}),
    "an unknown field": ([a_file(), Part("owner_id", "x")], {"/owner_id": "unknown_field"}),
    "a field that is a file": ([a_file(), Part("purpose", b"x", "a")], {"/purpose": "invalid_type"}),
    "metadata that are a file": ([a_file(), Part("metadata", b"{}", "a")], {"/metadata": "invalid_type"}),
    "visibility twice": ([a_file(), *[Part("visibility", "public")] * 2], {"/visibility": "repeated_parameter"}),
    "visibility in capitals": ([a_file(), Part("visibility", "PUBLIC")], {"/visibility": "invalid_choice"}),
    "no visibility": ([a_file(), Part("visibility", "")], {"/visibility": "invalid_choice"}),
    "no purpose": ([a_file(), Part("purpose", "")], {"/purpose": "invalid_length"}),
    "a long purpose": ([a_file(), Part("purpose", "é" * 41)], {"/purpose": "invalid_length"}),
    "a purpose with NUL": ([a_file(), Part("purpose", "a\0b")], {"/purpose": "invalid_characters"}),
    "a digest of other bytes": ([a_file(), Part("sha256", WRONG)], {"/sha256": "digest_mismatch"}),
    "a digest in capitals": ([a_file(), Part("sha256", SHA256.upper())], {"/sha256": "invalid_format"}),
    "a short digest": ([a_file(), Part("sha256", SHA256[:-1])], {"/sha256": "invalid_format"}),
    "a digest and a line": ([a_file(), Part("sha256", SHA256 + "\n")], {"/sha256": "invalid_format"}),
    "several faults": (
        [Part("visibility", "x"), Part("purpose", ""), Part("x", "")],
        {
            "/visibility": "invalid_choice",
            "/purpose": "invalid_length",
            "/x": "unknown_field",
            "/file": "file_required",
        },
    ),
}


@pytest.mark.parametrize(("parts", "faults"), REFUSED_FORMS.values(), ids=list(REFUSED_FORMS))
def test_a_form_that_is_not_valid_leaves_nothing(client, as_user, kept, parts, faults):
    before, caller = kept(), as_user()
    assert errors(client.post(FILES, headers=caller, **form(*parts))) == faults
    assert kept() == before
    usage = client.get("/v1/files/usage", headers=caller).json["data"]
    assert (usage["used"], usage["reserved"], usage["file_count"]) == (0, 0, 0)


def metadata_of(size: int) -> str:
    """A metadata object of so many bytes of JSON."""
    return '{"a":"%s"}' % ("x" * (size - 8))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "invalid_type"),
        ("album=summer", "invalid_type"),
        ("null", "invalid_type"),
        ("[]", "invalid_type"),
        ('"summer"', "invalid_type"),
        ("1", "invalid_type"),
        ('{"a": 1}', "invalid_type"),
        ('{"a": true}', "invalid_type"),
        ('{"a": null}', "invalid_type"),
        ('{"a": {"b": "c"}}', "invalid_type"),
        ('{"a": ["b"]}', "invalid_type"),
        ('{"a": "b"', "invalid_type"),
        ('{"a": "b"} x', "invalid_type"),
        ('{"a": "b", "a": "c"}', "invalid_type"),
        ('{"a": NaN}', "invalid_type"),
        ("[" * 100_000, "invalid_type"),
        ('{"a": "\\ud800"}', "invalid_type"),
        ('{"\\ud800": "a"}', "invalid_type"),
        ('{"a": "b\\u0000c"}', "invalid_characters"),
        ('{"b\\u0000c": "a"}', "invalid_characters"),
        (metadata_of(4097), "invalid_length"),
        ('{"a": "%s"}' % ("é" * 2045), "invalid_length"),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_metadata_are_a_flat_object_of_texts_written_as_json(client, as_user, kept, text, fault):
    before = kept()
    response = client.post(FILES, headers=as_user(), **form(a_file(), Part("metadata", text)))
    assert errors(response) == {"/metadata": fault}
    assert kept() == before


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        ("{}", {}),
        (' { "a" : "" } ', {"a": ""}),
        ('{"": "empty", "A": "1", "a": "2"}', {"": "empty", "A": "1", "a": "2"}),
        ('{"fox": "\\ud83e\\udd8a"}', {"fox": "🦊"}),
        (metadata_of(4096), {"a": "x" * 4088}),
    ],
    ids=["none", "blanks", "case", "a pair of surrogates", "4096 bytes"],
)
def test_metadata_are_kept_as_they_are(client, as_user, text, metadata):
    caller = as_user()
    data = upload(client, caller, metadata=text)
    assert data["metadata"] == metadata
    assert client.get(f"{FILES}/{data['id']}", headers=caller).json["data"]["metadata"] == metadata


def test_a_purpose_has_up_to_40_characters_of_any_kind(client, as_user):
    purpose = "🦊" * 40
    assert upload(client, as_user(), purpose=purpose)["purpose"] == purpose


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        ({"json": {"file": "x"}}, (415, "unsupported_media_type")),
        ({"data": b"x"}, (415, "unsupported_media_type")),
        ({"data": {"file": "x"}}, (415, "unsupported_media_type")),
        ({"data": b"--x--", "content_type": "multipart/mixed; boundary=x"}, (415, "unsupported_media_type")),
        ({"data": b"--x--", "content_type": "multipart/form-data"}, (400, "bad_request")),
        ({"data": b"--x--", "content_type": "multipart/form-data; boundary="}, (400, "bad_request")),
        ({"data": b"--\xc3\xa9--", "content_type": "multipart/form-data; boundary=é"}, (400, "bad_request")),
        ({"data": b"", "content_type": f"multipart/form-data; boundary={BOUNDARY}"}, (422, "validation_error")),
        ({"data": b"hello", "content_type": f"multipart/form-data; boundary={BOUNDARY}"}, (400, "incomplete_body")),
        ({**form(a_file()), "data": form(a_file())["data"][:-4]}, (400, "incomplete_body")),
        ({**form(a_file()), "data": form(a_file())["data"].replace(b"\r\n\r\n", b"\r\n")}, (400, "incomplete_body")),
        (form(*[Part(f"field{number}", "x") for number in range(21)]), (413, "payload_too_large")),
        (form(a_file(), Part("purpose", "x" * 300_000)), (413, "payload_too_large")),
    ],
    ids=[
        "JSON",
        "no type",
        "urlencoded",
        "multipart/mixed",
        "no boundary",
        "an empty boundary",
        "a boundary beyond ASCII",
        "nothing",
        "no parts",
        "no last boundary",
        "a part without an end of its headers",
        "21 parts",
        "a long field",
    ],
)
def test_what_is_no_form_leaves_nothing(client, as_user, kept, sent, refusal):
    before = kept()
    assert code(client.post(FILES, headers=as_user(), **sent)) == refusal
    assert kept() == before


@pytest.mark.parametrize("path", [FILES, RAW])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip"])
def test_compressed_bodies_are_not_accepted(client, as_user, path, encoding):
    sent = form(a_file())
    response = client.post(path, headers={**as_user(), "Content-Encoding": encoding}, **sent)
    assert code(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize("path", [FILES, RAW])
@pytest.mark.parametrize("coding", ["gzip, chunked", "Deflate, Chunked", "gzip"])
def test_bodies_that_were_compressed_for_the_transfer_are_not_accepted(client, as_user, path, coding):
    response = client.post(path, headers={**as_user(), "Transfer-Encoding": coding}, **form(a_file()))
    assert code(response) == (415, "unsupported_media_type")


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    ("holiday.jpg", "holiday.jpg"),
    ("../../etc/passwd", "passwd"),
    ("..\\\\..\\\\x", "x"),
    ("C:\\\\temp\\\\x.txt", "x.txt"),
    ("/", "file"),
    (".", "file"),
    ("..", "file"),
    ("   ", "file"),
    (".htaccess", ".htaccess"),
    ("NUL", "NUL"),
    ("a\x7fb\x01.txt", "ab.txt"),
    ("evil.html\0.png", "evil.html.png"),
    ("gpj.\u202eexe", "gpj.exe"),
    ("a\u200bb\u2028c.txt", "abc.txt"),
    ("e\u0301.txt", "é.txt"),
    ("🦊.png", "🦊.png"),
    ("a;b=%0d%0a'.txt", "a;b=%0d%0a'.txt"),
    ("x" * 300 + ".jpeg", "x" * 250 + ".jpeg"),
    ("é" * 200 + ".png", "é" * 125 + ".png"),
]


@pytest.mark.parametrize(("sent", "cleaned"), NAMES, ids=[str(number) for number in range(len(NAMES))])
def test_names_are_cleaned_and_never_refused(client, as_user, sent, cleaned):
    caller = as_user()
    assert upload(client, caller, filename=sent)["filename"] == cleaned
    query = {"filename": sent.replace("\\\\", "\\")}
    raw = client.post(RAW, query_string=query, data=b"x", content_type="text/plain", headers=caller)
    assert raw.json["data"]["filename"] == cleaned


def test_a_file_without_a_name_is_called_file(client, as_user):
    assert upload(client, as_user(), filename="")["filename"] == "file"


# --- raw bodies that are refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("unknown=1", {"/query/unknown": "unknown_field"}),
        ("metadata={}", {"/query/metadata": "unknown_field"}),
        ("filename=a&filename=b", {"/query/filename": "repeated_parameter"}),
        ("visibility=secret", {"/query/visibility": "invalid_choice"}),
        ("visibility=", {"/query/visibility": "invalid_choice"}),
        ("purpose=", {"/query/purpose": "invalid_length"}),
        ("purpose=" + "x" * 41, {"/query/purpose": "invalid_length"}),
        ("purpose=a%00b", {"/query/purpose": "invalid_characters"}),
        ("visibility=x&purpose=", {"/query/visibility": "invalid_choice", "/query/purpose": "invalid_length"}),
    ],
)
def test_what_is_said_of_a_raw_body_has_to_be_valid(client, as_user, kept, query, faults):
    before = kept()
    response = client.post(f"{RAW}?{query}", data=b"x", content_type="text/plain", headers=as_user())
    assert errors(response) == faults
    assert kept() == before


@pytest.mark.parametrize("content_type", [None, "", "text", "text/", "/plain", "a b/c", "text/plain, text/html"])
def test_a_raw_body_has_to_say_its_type(client, as_user, kept, content_type):
    before = kept()
    response = client.post(RAW, data=b"x", content_type=content_type, headers=as_user())
    assert code(response) == (415, "unsupported_media_type")
    assert kept() == before


def test_a_raw_body_has_at_least_one_byte(client, as_user, kept):
    before = kept()
    response = client.post(RAW, data=b"", content_type="text/plain", headers=as_user())
    assert errors(response) == {"/file": "empty_file"}
    assert kept() == before


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
def test_a_raw_body_is_held_against_its_digest(client, as_user, kept, header):
    before, caller = kept(), as_user()
    response = client.post(RAW, data=TEXT, content_type="text/plain", headers={**caller, header: as_digest(WRONG)})
    assert errors(response) == {"/header/Content-Digest": "digest_mismatch"}
    assert kept() == before
    good = {**caller, header: f"md5=:eA==:, {as_digest(SHA256)}"}
    assert client.post(RAW, data=TEXT, content_type="text/plain", headers=good).status_code == 201


@pytest.mark.parametrize("value", ["sha-512=:eA==:", "md5=:eA==:, id-sha-256=:eA==:"])
def test_digests_of_other_kinds_are_ignored(client, as_user, value):
    headers = {**as_user(), "Content-Digest": value}
    assert client.post(RAW, data=TEXT, content_type="text/plain", headers=headers).status_code == 201


@pytest.mark.parametrize(
    "value", ["", "x", SHA256, f"sha-256={SHA256}", "sha-256=:eA==:", "sha-256=:====:", "sha-256=::"]
)
def test_a_digest_that_cannot_be_read_is_refused(client, as_user, kept, value):
    before = kept()
    headers = {**as_user(), "Content-Digest": value}
    response = client.post(RAW, data=TEXT, content_type="text/plain", headers=headers)
    assert code(response) == (400, "invalid_digest")
    assert kept() == before


def test_a_digest_may_have_parameters(client, as_user):
    """RFC 8941 §3.1.2: what they mean is not said, so they are ignored."""
    headers = {**as_user(), "Content-Digest": f"{as_digest(SHA256)};a=1, md5=:eA==:;b"}
    assert client.post(RAW, data=TEXT, content_type="text/plain", headers=headers).status_code == 201
    headers["Content-Digest"] = f"{as_digest(WRONG)};a=1"
    response = client.post(RAW, data=TEXT, content_type="text/plain", headers=headers)
    assert errors(response) == {"/header/Content-Digest": "digest_mismatch"}


def test_a_field_of_a_form_that_is_not_utf_8_is_refused(client, as_user, kept):
    before = kept()
    response = client.post(FILES, headers=as_user(), **form(a_file(), Part("purpose", b"caf\xe9")))
    assert code(response) == (400, "bad_request")
    assert kept() == before


def test_two_digests_that_disagree_are_refused(client, as_user):
    headers = {**as_user(), "Content-Digest": as_digest(SHA256), "Repr-Digest": as_digest(WRONG)}
    assert code(client.post(RAW, data=TEXT, content_type="text/plain", headers=headers)) == (400, "invalid_digest")


# --- limits of the service --------------------------------------------------------------------------------------------


def test_a_file_may_be_as_large_as_the_limit_and_not_a_byte_more(client, as_user, kept, set_files):
    set_files(max_size=1000)
    caller = as_user()
    assert client.get("/v1/files/config", headers=caller).json["data"]["max_size"] == 1000
    assert client.post(FILES, headers=caller, **form(a_file(b"x" * 1000))).status_code == 201
    assert client.post(RAW, data=b"x" * 1000, content_type="text/plain", headers=caller).status_code == 201
    before = kept()
    assert code(client.post(FILES, headers=caller, **form(a_file(b"x" * 1001)))) == (413, "file_too_large")
    response = client.post(RAW, data=b"x" * 1001, content_type="text/plain", headers=caller)
    assert code(response) == (413, "file_too_large")
    response = client.post(DIRECT, json={**DIRECT_BODY, "size": 1001}, headers=caller)
    assert code(response) == (413, "file_too_large")
    assert kept() == before


def test_a_form_that_cannot_fit_is_refused_before_it_is_read(client, as_user, set_files):
    set_files(max_size=1000)
    # Nothing of the body is there, so whoever read it would say that it is cut.
    sent = {**form(a_file()), "data": b"", "environ_overrides": {"CONTENT_LENGTH": "1000000"}}
    response = client.post(FILES, headers=as_user(), **sent)
    assert code(response) == (413, "file_too_large")


def test_a_file_needs_room_in_the_quota(client, as_user, kept, set_files):
    set_files(quota=1000)
    caller = as_user()
    upload(client, caller, b"x" * 600)
    before = kept()
    assert code(client.post(FILES, headers=caller, **form(a_file(b"x" * 401)))) == (413, "quota_exceeded")
    response = client.post(RAW, data=b"x" * 401, content_type="text/plain", headers=caller)
    assert code(response) == (413, "quota_exceeded")
    assert kept() == before
    assert client.post(RAW, data=b"x" * 400, content_type="text/plain", headers=caller).status_code == 201
    assert client.get("/v1/files/usage", headers=caller).json["data"]["available"] == 0


def test_what_the_bytes_are_has_to_be_allowed(client, as_user, kept, set_files):
    set_files(allowed_types=("image/*",))
    caller = as_user()
    assert client.get("/v1/files/config", headers=caller).json["data"]["allowed_types"] == ["image/*"]
    before = kept()
    refusal = (415, "type_not_allowed")
    assert code(client.post(FILES, headers=caller, **form(a_file(TEXT, "a.png", "image/png")))) == refusal
    assert code(client.post(RAW, data=TEXT, content_type="image/png", headers=caller)) == refusal
    response = client.post(DIRECT, json={**DIRECT_BODY, "content_type": "text/plain"}, headers=caller)
    assert code(response) == refusal
    assert kept() == before
    assert client.post(RAW, data=PNG, content_type="text/plain", headers=caller).status_code == 201


def test_the_configuration_is_told_to_whoever_is_signed_in(client, as_user):
    assert code(client.get("/v1/files/config")) == (401, "token_required")
    response = client.get("/v1/files/config", headers=as_user())
    assert (response.status_code, response.json) == (
        200,
        {
            "data": {
                "max_size": 100 * 1024 * 1024,
                "allowed_types": response.json["data"]["allowed_types"],
                "thumbnail_sizes": [64, 128, 256, 512, 1024],
                "direct_upload": False,
            }
        },
    )


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [FILES, RAW])
def test_a_repeated_upload_is_answered_with_the_first_file(client, as_user, kept, path):
    headers = {**as_user(), "Idempotency-Key": "one"}
    sent = form(a_file())
    first = client.post(path, headers=headers, **sent)
    before = kept()
    again = client.post(path, headers=headers, **sent)
    assert (again.status_code, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert [again.headers[name] for name in ("Location", "ETag")] == [
        first.headers[name] for name in ("Location", "ETag")
    ]
    assert "Idempotent-Replayed" not in first.headers
    assert kept() == before


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (FILES, {**form(a_file(TEXT + b"x"))}),
        (f"{RAW}?purpose=other", {}),
        (RAW, {**form(a_file(TEXT + b"x"))}),
        (RAW, {"content_digest": as_digest(WRONG)}),
    ],
    ids=["a longer form", "another query", "a longer body", "another digest"],
)
def test_a_key_is_for_one_upload(client, as_user, kept, path, change):
    headers = {**as_user(), "Idempotency-Key": "one"}
    assert client.post(path.partition("?")[0], headers=headers, **form(a_file())).status_code == 201
    before = kept()
    sent = {**form(a_file()), **change}
    digest = {"Content-Digest": sent.pop("content_digest")} if "content_digest" in sent else {}
    response = client.post(path, headers={**headers, **digest}, **sent)
    assert code(response) == (422, "idempotency_key_reused")
    assert kept() == before


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        (FILES, form(a_file(), Part("x", "y"))),
        (FILES, form(a_file(b""))),
        (FILES, {"data": b"x", "content_type": "text/plain"}),
        (RAW, {"data": b"", "content_type": "text/plain"}),
        (RAW, {"data": b"x"}),
    ],
)
def test_a_refusal_does_not_burn_the_key(client, as_user, path, refused):
    headers = {**as_user(), "Idempotency-Key": "one"}
    assert client.post(path, headers=headers, **refused).status_code in {415, 422}
    assert client.post(path, headers=headers, **form(a_file())).status_code == 201


def test_the_key_of_a_deleted_file_makes_no_second_one(client, as_user, run_jobs):
    """What was answered is answered again, for a day: the client asked for one file and had it."""
    headers = {**as_user(), "Idempotency-Key": "one"}
    first = client.post(FILES, headers=headers, **form(a_file()))
    assert client.delete(first.headers["Location"], headers=headers).status_code == 204
    run_jobs()
    again = client.post(FILES, headers=headers, **form(a_file()))
    assert (again.status_code, again.json) == (201, first.json)
    assert client.get(first.headers["Location"], headers=headers).status_code == 404


# --- what comes first -------------------------------------------------------------------------------------------------


def test_of_several_faults_of_an_upload_the_same_is_told_first(client, as_user, set_files):
    set_files(max_size=1000, quota=100)
    caller = as_user()
    key = {"Idempotency-Key": "a b"}
    wrong = {"data": b"x" * 1001, "content_type": "text/plain"}
    assert code(client.post(FILES, headers=key, **wrong)) == (401, "token_required")
    assert code(client.post(FILES, headers={**caller, **key}, **wrong)) == (400, "idempotency_key_invalid")
    assert code(client.post(FILES, headers=caller, **wrong)) == (415, "unsupported_media_type")
    large = form(a_file(b"x" * 1001), Part("x", "y"))
    assert code(client.post(FILES, headers=caller, **large)) == (413, "file_too_large")
    faulty = form(a_file(b"x" * 101), Part("x", "y"), Part("sha256", WRONG))
    assert errors(client.post(FILES, headers=caller, **faulty)) == {"/x": "unknown_field"}
    full = form(a_file(b"x" * 101), Part("sha256", WRONG))
    assert code(client.post(FILES, headers=caller, **full)) == (413, "quota_exceeded")
    assert errors(client.post(FILES, headers=caller, **form(a_file(), Part("sha256", WRONG)))) == {
        "/sha256": "digest_mismatch"
    }


def test_of_several_faults_of_a_raw_upload_the_same_is_told_first(client, as_user, set_files):
    set_files(max_size=1000)
    caller = {**as_user(), "Content-Digest": "x"}
    path, large = f"{RAW}?unknown=1", b"x" * 1001
    assert code(client.post(path, data=large)) == (401, "token_required")
    assert code(client.post(path, data=large, headers=caller)) == (415, "unsupported_media_type")
    assert code(client.post(path, data=large, content_type="a/b", headers=caller)) == (413, "file_too_large")
    assert code(client.post(path, data=b"x", content_type="a/b", headers=caller)) == (400, "invalid_digest")
    headers = {**caller, "Content-Digest": as_digest(WRONG)}
    response = client.post(path, data=b"x", content_type="a/b", headers=headers)
    assert errors(response) == {"/query/unknown": "unknown_field"}
    response = client.post(RAW, data=b"x", content_type="a/b", headers=headers)
    assert errors(response) == {"/header/Content-Digest": "digest_mismatch"}


@pytest.mark.parametrize("path", [FILES, RAW])
def test_uploads_spend_the_budget_of_writes(client, as_user, path):
    response = client.post(path, headers=as_user(), **form(a_file()))
    assert response.headers["RateLimit-Policy"].startswith('"write";')


# --- direct uploads, as they are refused without S3 -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"filename": None}, {"/filename": "null_not_allowed"}),
        ({"size": 0}, {"/size": "out_of_range"}),
        ({"size": -1}, {"/size": "out_of_range"}),
        ({"size": 2**63}, {"/size": "out_of_range"}),
        ({"size": "10"}, {"/size": "invalid_type"}),
        ({"size": 10.0}, {"/size": "invalid_type"}),
        ({"size": True}, {"/size": "invalid_type"}),
        ({"content_type": "png"}, {"/content_type": "invalid_format"}),
        ({"content_type": ""}, {"/content_type": "invalid_format"}),
        ({"content_type": "image/png\r\nX-Evil: 1"}, {"/content_type": "invalid_format"}),
        ({"sha256": SHA256.upper()}, {"/sha256": "invalid_format"}),
        ({"sha256": SHA256 + "\n"}, {"/sha256": "invalid_format"}),
        ({"sha256": None}, {"/sha256": "null_not_allowed"}),
        ({"metadata": "{}"}, {"/metadata": "invalid_type"}),
        ({"visibility": "secret"}, {"/visibility": "invalid_choice"}),
        ({"status": "ready"}, {"/status": "unknown_field"}),
    ],
)
def test_a_direct_upload_has_to_be_described(client, as_user, kept, change, faults):
    before = kept()
    assert errors(client.post(DIRECT, json={**DIRECT_BODY, **change}, headers=as_user())) == faults
    assert kept() == before


def test_a_direct_upload_has_to_be_described_completely(client, as_user):
    assert errors(client.post(DIRECT, json={}, headers=as_user())) == {f"/{name}": "required" for name in DIRECT_BODY}


def test_direct_uploads_need_a_bucket(client, as_user, kept):
    before = kept()
    response = client.post(DIRECT, json=DIRECT_BODY, headers=as_user())
    assert code(response) == (409, "direct_upload_unsupported")
    assert kept() == before


def test_only_an_owner_completes_an_upload(client, as_user, as_staff, as_admin):
    caller = as_user()
    path = f"{FILES}/{upload(client, caller)['id']}"
    for other in (as_user(), as_staff, as_admin):
        assert code(client.post(f"{path}/complete", headers=other)) == (404, "not_found")
    assert code(client.post(COMPLETE, headers=caller)) == (404, "not_found")
    # Of a file that is ready nothing changes.
    response = client.post(f"{path}/complete", headers=caller)
    assert (response.status_code, response.json) == (200, client.get(path, headers=caller).json)
