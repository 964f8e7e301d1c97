"""What a caller cannot reach, guess, set or learn of: other people's sessions, pages and fields."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from requests import Response

from tests.http.client import PASSWORD, Account, Api, Outbox, codes, log_in, new_address, problem
from tests.http.document import file_of, good_request, read_operations
from tests.http.tokens import claims_of

MISSING = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
# What an attacker would like to set (mass assignment).
FORBIDDEN: dict[str, Any] = {
    "roles": ["admin"],
    "is_admin": True,
    "is_superuser": True,
    "is_verified": True,
    "email_verified": True,
    "id": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f",
    "_id": 1,
    "created_at": "2000-01-01T00:00:00Z",
    "updated_at": "2000-01-01T00:00:00Z",
    "last_login_at": "2000-01-01T00:00:00Z",
    "erased_at": "2000-01-01T00:00:00Z",
    "balance": 1_000_000,
    "quota": 1_000_000,
    "password_hash": "x",
    "tenant_id": 1,
    "sessions": [],
    "session_epoch": 0,
    "version": 99,
    "__class__": "User",
    "__proto__": {"is_admin": True},
    "user": {"role": "admin"},
    "data": {"role": "admin"},
}
# The same of a file.
FORBIDDEN_OF_FILES: dict[str, Any] = {
    "id": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f",
    "owner_id": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f",
    "user_id": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f",
    "status": "ready",
    "size": 1,
    "reserved": 0,
    "content_type": "text/html",
    "declared_type": "text/html",
    "sniffed_type": "text/html",
    "storage_key": "00/00/00000000000000000000000000000000",
    "upload_method": "direct",
    "width": 1,
    "version": 99,
    "labels": {},
    "ready_at": "2000-01-01T00:00:00Z",
    "created_at": "2000-01-01T00:00:00Z",
    "content_url": "https://evil.example",
    "quota": 1_000_000,
    "file": {"visibility": "public"},
    "__class__": "File",
}


@pytest.mark.parametrize("field", [*FORBIDDEN, "role", "is_active", "email", "password"])
def test_users_cannot_set_what_is_not_theirs_to_set(user: Account, field: str) -> None:
    before = user.api.get("/v1/users/me").content
    value = {**FORBIDDEN, "role": "admin", "is_active": True, "email": new_address(), "password": PASSWORD}[field]
    response = user.api.patch("/v1/users/me", json={"name": "Mallory", field: value})
    assert codes(problem(response, 422, "validation_error")) == {f"/{field}": "unknown_field"}
    assert user.api.get("/v1/users/me").content == before


@pytest.mark.parametrize("field", [*FORBIDDEN, "role", "is_active"])
def test_registering_sets_nothing_but_address_password_and_name(anonymous: Api, admin: Account, field: str) -> None:
    address = new_address()
    value = {**FORBIDDEN, "role": "admin", "is_active": True}[field]
    body = {"email": address, "password": PASSWORD, field: value}
    response = anonymous.post("/v1/auth/register", json=body)
    assert codes(problem(response, 422, "validation_error")) == {f"/{field}": "unknown_field"}
    assert admin.api.get("/v1/users", params={"q": address}).json()["data"] == []


@pytest.mark.parametrize("field", [*FORBIDDEN, "password"])
def test_not_even_admins_set_what_only_the_system_knows(admin: Account, user: Account, field: str) -> None:
    value = {**FORBIDDEN, "password": PASSWORD}[field]
    before = user.api.get("/v1/users/me").content
    attempts = [
        admin.api.patch(f"/v1/users/{user.id}", json={field: value}),
        admin.api.post("/v1/users", json={"email": new_address(), "role": "user", field: value}),
    ]
    for response in attempts:
        assert codes(problem(response, 422, "validation_error")) == {f"/{field}": "unknown_field"}
    assert user.api.get("/v1/users/me").content == before


@pytest.mark.parametrize("field", [*FORBIDDEN_OF_FILES, "sha256"])
def test_owners_set_only_what_is_said_of_their_files(user: Account, field: str) -> None:
    path = f"/v1/files/{file_of(user)}"
    before = user.api.get(path).content
    value = {**FORBIDDEN_OF_FILES, "sha256": "0" * 64}[field]
    response = user.api.patch(path, json={"purpose": "changed", field: value})
    assert codes(problem(response, 422, "validation_error")) == {f"/{field}": "unknown_field"}
    assert user.api.get(path).content == before


@pytest.mark.parametrize("field", sorted(FORBIDDEN_OF_FILES.keys() - {"file"}))
def test_an_upload_sets_only_what_is_said_of_the_file(user: Account, field: str) -> None:
    before = user.api.get("/v1/files/usage").content
    text = str(FORBIDDEN_OF_FILES[field])
    response = user.api.post("/v1/files", files={"file": ("a", b"x")}, data={field: text})
    assert codes(problem(response, 422, "validation_error")) == {f"/{field}": "unknown_field"}
    response = user.api.post("/v1/files/raw", params={field: text}, data=b"x", headers={"Content-Type": "a/b"})
    assert codes(problem(response, 422, "validation_error")) == {f"/query/{field}": "unknown_field"}
    assert user.api.get("/v1/files/usage").content == before


def test_nothing_is_set_by_the_query_a_form_or_a_patch_document(user: Account) -> None:
    before = user.api.get("/v1/users/me").content
    user.api.patch("/v1/users/me?role=admin&name=Mallory", json={})
    user.api.patch("/v1/users/me", data={"role": "admin", "name": "Mallory"})
    user.api.patch("/v1/users/me", files={"role": (None, "admin")})
    user.api.patch("/v1/users/me", json=[{"op": "replace", "path": "/role", "value": "admin"}])
    assert user.api.get("/v1/users/me").content == before


# --- what is another's looks like what does not exist ----------------------------------------------------------------


def without_request(response: Response) -> dict[str, Any]:
    return {name: value for name, value in response.json().items() if name not in {"request_id", "instance"}}


def test_anothers_session_is_answered_like_none(user: Account, admin: Account) -> None:
    anothers = user.api.delete(f"/v1/auth/sessions/{claims_of(admin.access_token)['sid']}")
    missing = user.api.delete(f"/v1/auth/sessions/{uuid4()}")
    problem(anothers, 404, "not_found")
    assert without_request(anothers) == without_request(missing)
    volatile = {"X-Request-ID", "Date", "RateLimit"}
    kept = [
        {name: value for name, value in response.headers.items() if name not in volatile}
        for response in (anothers, missing)
    ]
    assert kept[0] == kept[1]
    assert admin.api.get("/v1/users/me").status_code == 200


def test_anothers_file_is_answered_like_none_by_every_operation(user: Account, admin: Account, anonymous: Api) -> None:
    """But for what staff may: read about it, and delete it."""
    # Not `file_of(admin)`, which other tests may have changed or made public.
    upload = admin.api.post("/v1/files", files={"file": ("hello.txt", b"hello", "text/plain")})
    their, share = upload.json()["data"]["id"], str(uuid4())
    answers = {}
    for operation in read_operations(anonymous):
        if "{file_id}" in operation.path:
            path = operation.path.replace("{share_id}", share)
            anothers, missing = (
                user.api.request(operation.method, path.replace("{file_id}", file), **good_request(operation))
                for file in (their, MISSING)
            )
            problem(anothers, 404, "not_found")
            assert without_request(anothers) == without_request(missing)
            answers[operation.id] = without_request(missing)
    assert len(answers) == 10
    assert len({str(answer) for answer in answers.values()}) == 1


def test_nothing_of_other_people_is_shown_to_a_user(
    user: Account, invite: Callable[[str], Account], anonymous: Api
) -> None:
    stranger = invite("user")
    file_of(stranger)
    for operation in read_operations(anonymous):
        if operation.method == "GET" and "{" not in operation.path:
            answer = user.api.get(operation.path)
            assert stranger.id not in answer.text
            assert stranger.email not in answer.text
    for session in user.api.get("/v1/auth/sessions?limit=100").json()["data"]:
        assert session["id"] != claims_of(stranger.access_token)["sid"]


# --- cursors ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sessions(invite: Callable[[str], Account], anonymous: Api) -> tuple[Account, str]:
    """An account with two sessions, and the cursor to the second page of one each."""
    account = log_in(anonymous, invite("staff").email)
    page = account.api.get("/v1/auth/sessions?limit=1").json()
    return account, page["meta"]["next_cursor"]


def test_a_cursor_leads_on_for_its_own_query(two_sessions: tuple[Account, str]) -> None:
    account, cursor = two_sessions
    response = account.api.get(f"/v1/auth/sessions?limit=1&cursor={cursor}")
    assert [session["current"] for session in response.json()["data"]] == [False]
    assert response.json()["meta"]["next_cursor"] is None
    assert "Link" not in response.headers


def test_the_link_of_a_page_is_the_next_page(two_sessions: tuple[Account, str]) -> None:
    account, cursor = two_sessions
    link = account.api.get("/v1/auth/sessions?limit=1").links["next"]["url"]
    path = link[link.index("/v1/") :]
    assert path == f"/v1/auth/sessions?limit=1&cursor={cursor}"


def test_a_cursor_of_another_caller_is_400(two_sessions: tuple[Account, str], user: Account, admin: Account) -> None:
    for stranger in (user, admin):
        response = stranger.api.get(f"/v1/auth/sessions?limit=1&cursor={two_sessions[1]}")
        problem(response, 400, "invalid_cursor")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/auth/sessions?sort=created_at",
        "/v1/auth/sessions?sort=-last_used_at",
        "/v1/users?limit=1",
        "/v1/users?role=staff",
    ],
)
def test_a_cursor_of_another_query_is_400(two_sessions: tuple[Account, str], path: str) -> None:
    account, cursor = two_sessions
    problem(account.api.get(f"{path}&cursor={cursor}"), 400, "invalid_cursor")


def test_a_cursor_with_another_filter_is_400(admin: Account, user: Account) -> None:
    cursor = admin.api.get("/v1/users?limit=1&is_active=true").json()["meta"]["next_cursor"]
    assert admin.api.get(f"/v1/users?limit=1&is_active=true&cursor={cursor}").status_code == 200
    for query in ("", "is_active=false", "is_active=true&role=user", "q=canary"):
        problem(admin.api.get(f"/v1/users?limit=1&{query}&cursor={cursor}"), 400, "invalid_cursor")


def test_a_cursor_of_files_is_its_callers_alone(invite: Callable[[str], Account], admin: Account) -> None:
    staff, other = invite("staff"), invite("staff")
    for account in (staff, other):
        file_of(account)
    cursor = staff.api.get("/v1/files?limit=1&scope=all").json()["meta"]["next_cursor"]
    assert staff.api.get(f"/v1/files?limit=1&scope=all&cursor={cursor}").status_code == 200
    for caller, query in ((other, "scope=all"), (admin, "scope=all"), (staff, "scope=mine"), (staff, "")):
        problem(caller.api.get(f"/v1/files?limit=1&{query}&cursor={cursor}"), 400, "invalid_cursor")


def test_an_altered_cursor_is_400(two_sessions: tuple[Account, str]) -> None:
    account, cursor = two_sessions
    for position in range(len(cursor)):
        altered = cursor[:position] + ("A" if cursor[position] != "A" else "B") + cursor[position + 1 :]
        problem(account.api.get(f"/v1/auth/sessions?limit=1&cursor={altered}"), 400, "invalid_cursor")


# --- who has an account ----------------------------------------------------------------------------------------------


def test_no_answer_tells_whether_an_address_has_an_account(anonymous: Api, user: Account, outbox: Outbox) -> None:
    def compare(path: str, **fields: str) -> None:
        answers = [anonymous.post(path, json={"email": address, **fields}) for address in (user.email, new_address())]
        first, second = ({**answer.json(), "request_id": ""} for answer in answers)
        assert (answers[0].status_code, first) == (answers[1].status_code, second)
        assert set(answers[0].headers) == set(answers[1].headers)

    compare("/v1/auth/register", password=PASSWORD)
    compare("/v1/auth/resend-verification")
    compare("/v1/auth/forgot-password")
    compare("/v1/auth/login", password="not the password of anybody")
    assert len(outbox.wait_for("already_registered", user.email)) == 1
    assert outbox.wait_for("reset_password", user.email)
