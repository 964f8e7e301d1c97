import base64
from datetime import timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from project import signing
from project.files.models import FileStatus
from project.security import Role
from tests.files.asking import TEXT, begin_upload, code, errors, relative, set_status, upload, without_request
from tests.files.samples import picture

FILES = "/v1/files"
ID = "01234567-89ab-7cde-8f01-23456789abcd"
NOW = "2030-01-31T12:00:00Z"


@pytest.fixture
def ann(as_user):
    """The owner of the files."""
    return as_user(email="ann@example.com")


@pytest.fixture
def photo(client, ann):
    """A private picture of Ann's."""
    return upload(client, ann, picture("PNG"), filename="holiday.png", content_type="image/png")


@pytest.fixture
def sign(client, ann):
    """Have a URL signed, and return its path and query."""

    def sign(file: dict, **body) -> str:
        response = client.post(f"{FILES}/{file['id']}/signed-url", json=body, headers=ann)
        assert response.status_code == 200, response.json
        return relative(response.json["data"]["url"])

    return sign


@pytest.fixture
def get(client):
    """Get something whole as somebody without a token, and close it."""
    return lambda path, headers=None, method="GET": client.open(path, method=method, headers=headers, buffered=True)


@pytest.fixture
def at_noon(app, ann, sign_in, time_machine):
    """Stop the clock, with a session that lives then."""
    time_machine.move_to(NOW, tick=False)
    ann.update(sign_in(ann.user))
    return time_machine


def changed(url: str, **values: str | None) -> str:
    """The URL with other parameters; None leaves one out."""
    parts = urlsplit(url)
    query = {name: found[0] for name, found in parse_qs(parts.query, keep_blank_values=True).items()} | values
    return f"{parts.path}?{urlencode({name: value for name, value in query.items() if value is not None})}"


# --- who may, and what is answered ------------------------------------------------------------------------------------


def test_signing_needs_a_token(client, photo, ann):
    for path in (f"{FILES}/{photo['id']}/signed-url", f"{FILES}/{ID}/signed-url"):
        assert code(client.post(path, json={})) == (401, "token_required")
        assert code(client.post(path, json={}, headers=ann.refreshing)) == (401, "invalid_token")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("visibility", ["private", "public"])
def test_only_the_owner_has_a_url_signed(client, ann, as_user, photo, role, visibility):
    client.patch(f"{FILES}/{photo['id']}", json={"visibility": visibility}, headers=ann)
    caller = as_user(role=role)
    anothers = client.post(f"{FILES}/{photo['id']}/signed-url", json={}, headers=caller)
    assert code(anothers) == (404, "not_found")
    none = client.post(f"{FILES}/{ID}/signed-url", json={}, headers=caller)
    assert without_request(anothers) == without_request(none)


def test_a_signed_url_opens_a_private_file_for_everybody(client, ann, photo, as_user, as_staff, sign, get):
    url = sign(photo)
    assert urlsplit(url).path == f"{FILES}/{photo['id']}/content"
    response = get(url)
    for caller in (None, ann, as_user(), as_staff):
        response = get(url, caller)
        assert (response.status_code, response.data) == (200, picture("PNG"))
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-site"
        assert response.headers["Content-Disposition"].startswith("attachment;")
    assert get(url, method="HEAD").headers["ETag"] == response.headers["ETag"]
    assert get(url, {"Range": "bytes=0-7"}).data == b"\x89PNG\r\n\x1a\n"
    assert get(url, {"If-None-Match": response.headers["ETag"]}).status_code == 304
    assert code(get(url, {"Authorization": "Bearer x.y.z"})) == (401, "invalid_token")


def test_a_signed_url_may_show_the_file_or_its_thumbnail(photo, sign, get):
    shown = get(sign(photo, disposition="inline"))
    assert shown.headers["Content-Disposition"].startswith("inline;")
    url = sign(photo, thumbnail=64)
    assert urlsplit(url).path == f"{FILES}/{photo['id']}/thumbnail"
    thumbnail = get(url)
    assert (thumbnail.status_code, thumbnail.content_type) == (200, "image/webp")
    assert get(sign(photo, thumbnail=64, disposition="attachment")).headers["Content-Disposition"][:10] == "attachment"


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "seconds"), [({}, 300), ({"expires_in": 1}, 1), ({"expires_in": 3600}, 3600)])
def test_a_signed_url_works_for_its_time(client, ann, at_noon, photo, get, body, seconds):
    data = client.post(f"{FILES}/{photo['id']}/signed-url", json=body, headers=ann).json["data"]
    minutes, rest = divmod(seconds, 60)
    assert data["expires_at"] == f"2030-01-31T{12 + minutes // 60}:{minutes % 60:02}:{rest:02}Z"
    url = relative(data["url"])
    at_noon.shift(timedelta(seconds=seconds - 0.001))
    assert get(url).status_code == 200
    at_noon.shift(timedelta(milliseconds=1))
    expired = get(url)
    assert code(expired) == (404, "not_found")
    assert without_request(expired) == without_request(get(changed(url, sig="x")))


def test_an_expired_url_is_of_no_use_to_its_owner_either(ann, sign_in, at_noon, photo, sign, get):
    url = sign(photo)
    at_noon.shift(timedelta(seconds=300))
    fresh = sign_in(ann.user)
    assert code(get(url, fresh)) == (404, "not_found")
    assert get(urlsplit(url).path, fresh).status_code == 200


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({"expires_in": 0}, {"/expires_in": "out_of_range"}),
        ({"expires_in": -1}, {"/expires_in": "out_of_range"}),
        ({"expires_in": 3601}, {"/expires_in": "out_of_range"}),
        ({"expires_in": 2**63 - 1}, {"/expires_in": "out_of_range"}),
        ({"expires_in": None}, {"/expires_in": "null_not_allowed"}),
        ({"expires_in": "300"}, {"/expires_in": "invalid_type"}),
        ({"expires_in": 300.0}, {"/expires_in": "invalid_type"}),
        ({"expires_in": True}, {"/expires_in": "invalid_type"}),
        ({"disposition": "show"}, {"/disposition": "invalid_choice"}),
        ({"disposition": None}, {"/disposition": "null_not_allowed"}),
        ({"disposition": ""}, {"/disposition": "invalid_choice"}),
        ({"thumbnail": 100}, {"/thumbnail": "invalid_choice"}),
        ({"thumbnail": "64"}, {"/thumbnail": "invalid_type"}),
        ({"thumbnail": True}, {"/thumbnail": "invalid_type"}),
        ({"size": 64}, {"/size": "unknown_field"}),
        ({"exp": 1}, {"/exp": "unknown_field"}),
    ],
)
def test_what_is_to_be_signed_has_to_be_valid(client, ann, photo, body, faults):
    for file_id in (photo["id"], ID):
        assert errors(client.post(f"{FILES}/{file_id}/signed-url", json=body, headers=ann)) == faults


# --- what it is bound to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"disposition": None},
        {"disposition": "attachment"},
        {"exp": None},
        {"sig": None},
        {"exp": ""},
        {"sig": ""},
        {"exp": "9999999999"},
        {"exp": "99999999999999999999999999"},
        {"exp": "1e99"},
        {"exp": "-1"},
        {"exp": "NaN"},
        {"exp": "٣"},
        {"exp": "9" * 5000},
        {"sig": "ü"},
        {"sig": "x" * 5000},
        {"sig": "\0"},
    ],
    ids=lambda change: ascii(change)[:40],
)
def test_no_parameter_can_be_changed(photo, sign, get, change):
    url = sign(photo, disposition="inline")
    assert get(url).status_code == 200
    assert code(get(changed(url, **change))) == (404, "not_found")


@pytest.mark.parametrize("name", ["exp", "sig"])
def test_no_character_of_a_signature_can_be_changed(photo, sign, get, name):
    url = sign(photo)
    value = parse_qs(urlsplit(url).query)[name][0]
    others = [
        *(value[:place] + ("0" if value[place] != "0" else "1") + value[place + 1 :] for place in range(len(value))),
        *(value[:place] + value[place + 1 :] for place in range(len(value))),
        *(f"{value}{more}" for more in ("0", "=", " ", "\n", "%00", ".")),
        f" {value}",
        f"0{value}",
        value.swapcase() if name == "sig" else f"+{value}",
    ]
    for other in others:
        assert code(get(changed(url, **{name: other}))) == (404, "not_found"), other
    assert code(get(f"{url}%FF")) == code(get(url.replace("sig=", "sig=%ED%A0%80"))) == (404, "not_found")


def test_a_signature_is_for_one_file_and_one_variant(client, ann, photo, sign, get):
    other = upload(client, ann, picture("PNG"), content_type="image/png")
    content, small, large = sign(photo), sign(photo, thumbnail=64), sign(photo, thumbnail=256)
    query = urlsplit(content).query
    assert code(get(f"{FILES}/{other['id']}/content?{query}")) == (404, "not_found")
    assert code(get(f"{FILES}/{ID}/content?{query}")) == (404, "not_found")
    assert code(get(f"{FILES}/{photo['id']}/thumbnail?{query}")) == (404, "not_found")
    assert code(get(changed(small, size="128"))) == (404, "not_found")
    assert code(get(changed(small, size=None))) == (404, "not_found")
    assert code(get(changed(small, format="jpeg"))) == (404, "not_found")
    assert code(get(changed(small, disposition="attachment"))) == (404, "not_found")
    # What it says anyway may be left out.
    assert get(changed(large, size=None)).status_code == get(changed(small, format="webp")).status_code == 200
    assert errors(get(f"{FILES}/{photo['id']}/content?{urlsplit(small).query}")) == {"/query/size": "unknown_field"}


@pytest.mark.parametrize("purpose", ["pagination cursor", "signed url of a file", ""])
def test_what_was_signed_for_another_purpose_opens_nothing(client, ann, at_noon, in_app, photo, sign, get, purpose):
    """The key is derived from SECRET_KEY for this one use."""
    url = sign(photo)
    expires = parse_qs(urlsplit(url).query)["exp"][0]
    message = f"v1|{photo['id']}|content||{expires}".encode()
    assert get(changed(url, sig=encoded(in_app(signing.digest, "signed URL of a file", message)))).status_code == 200
    assert code(get(changed(url, sig=encoded(in_app(signing.digest, purpose, message))))) == (404, "not_found")


def encoded(digest: bytes) -> str:
    """A signature as the URL has it."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_another_signature_is_404_for_a_public_file_too(client, ann, photo, sign, get):
    client.patch(f"{FILES}/{photo['id']}", json={"visibility": "public"}, headers=ann)
    url = sign(photo)
    assert get(urlsplit(url).path).status_code == get(url).status_code == 200
    for wrong in ({"sig": "x"}, {"sig": None}, {"exp": None}, {"exp": "", "sig": ""}):
        for caller in (None, ann):
            assert code(get(changed(url, **wrong), caller)) == (404, "not_found")


# --- until when -------------------------------------------------------------------------------------------------------


def test_a_signed_url_ends_with_its_file(client, ann, photo, sign, get, run_jobs):
    urls = [sign(photo), sign(photo, thumbnail=64)]
    assert client.delete(f"{FILES}/{photo['id']}", headers=ann).status_code == 204
    for _ in range(2):
        for url in urls:
            assert code(get(url)) == (404, "not_found")
            assert without_request(get(url)) == without_request(get(changed(url, sig="x")))
        run_jobs()


def test_of_a_file_without_content_nothing_is_signed_away(client, ann, in_app, sign, get, photo):
    pending = sign({"id": in_app(begin_upload, ann.user.id)})
    # That it is still coming is its owner's to know.
    assert code(get(pending)) == (404, "not_found")
    assert code(get(pending, ann)) == (409, "not_ready")
    in_app(set_status, photo["id"], FileStatus.MISSING)
    assert code(get(sign(photo))) == (410, "file_lost")


def test_signing_changes_nothing(client, ann, photo, sign):
    before = client.get(f"{FILES}/{photo['id']}", headers=ann)
    assert sign(photo) != sign(photo, expires_in=10)
    after = client.get(f"{FILES}/{photo['id']}", headers=ann)
    assert (after.json, after.headers["ETag"]) == (before.json, before.headers["ETag"])


def test_a_text_is_signed_as_well(client, ann, sign, get):
    assert get(sign(upload(client, ann), disposition="inline")).data == TEXT
