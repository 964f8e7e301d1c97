"""Of several faults in a request, the same one is always told first."""

from uuid import UUID, uuid4

import pytest

from tests.http.client import Account, problem
from tests.http.cluster import PLENTY
from tests.http.conftest import Start
from tests.http.document import file_of

MISSING = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"


def test_refusals_come_in_one_order(run_with: Start, admin: Account, user: Account) -> None:
    """Each step cures what the one before was refused for; all later faults are there from the start."""
    target, missing = f"/v1/users/{admin.id}", f"/v1/users/{MISSING}"
    stale = {"If-Match": f'"{UUID(admin.id).hex}-999999"'}
    text = {**stale, "Content-Type": "text/plain"}
    tight = run_with(LIMIT_WRITE="1/hour")
    tight.patch(target, data="{", headers=text)
    problem(tight.patch(target, data="{", headers=text), 429, "rate_limited")

    relaxed = run_with(LIMIT_WRITE=PLENTY)
    problem(relaxed.patch(missing, data="{", headers=text), 401, "token_required")
    as_user, as_admin = relaxed.with_token(user.access_token), relaxed.with_token(admin.access_token)
    problem(as_user.patch(missing, data="{", headers=text), 403, "forbidden")
    problem(as_admin.patch(missing, data="{", headers=text), 415, "unsupported_media_type")
    problem(
        as_admin.patch(missing, data="{", headers={**stale, "Content-Type": "application/json"}), 400, "invalid_json"
    )
    problem(as_admin.patch(missing, json={"role": "root"}, headers=stale), 422, "validation_error")
    problem(as_admin.patch(missing, json={"role": "user"}, headers=stale), 404, "not_found")
    problem(as_admin.patch(target, json={"role": "user"}, headers=stale), 412, "precondition_failed")


def test_refusals_of_a_change_of_a_file_come_in_one_order(run_with: Start, admin: Account, user: Account) -> None:
    """Not even an administrator changes another's file; that there is one is told first."""
    own, anothers, missing = (f"/v1/files/{file}" for file in (file_of(user), file_of(admin), MISSING))
    stale = {"If-Match": '"x"'}
    text = {**stale, "Content-Type": "text/plain"}
    relaxed = run_with(LIMIT_WRITE=PLENTY)
    problem(relaxed.patch(missing, data="{", headers=text), 401, "token_required")
    api = relaxed.with_token(user.access_token)
    problem(api.patch(missing, data="{", headers=text), 415, "unsupported_media_type")
    problem(api.patch(missing, data="{", headers={**stale, "Content-Type": "application/json"}), 400, "invalid_json")
    problem(api.patch(missing, json={"visibility": "x"}, headers=stale), 422, "validation_error")
    for path in (missing, anothers):
        problem(api.patch(path, json={"visibility": "private"}, headers=stale), 404, "not_found")
    as_admin = relaxed.with_token(admin.access_token)
    problem(as_admin.patch(own, json={"visibility": "private"}, headers=stale), 403, "forbidden")
    problem(api.patch(own, json={"visibility": "private"}, headers=stale), 412, "precondition_failed")


def test_refusals_of_content_come_in_one_order(run_with: Start, user: Account) -> None:
    """Each step cures what the one before was refused for; all later faults are there from the start."""
    own, missing = (f"/v1/files/{file}/content" for file in (file_of(user), MISSING))
    tag = user.api.request("HEAD", own).headers["ETag"]
    beyond = {"Range": "bytes=999-", "If-None-Match": tag}
    faulty = {**beyond, "If-Match": '"x"'}
    tight = run_with(LIMIT_DOWNLOAD="1/hour")
    tight.get(missing)
    problem(tight.get(f"{missing}?x=1", token="x.y.z", headers=faulty), 429, "rate_limited")
    problem(user.api.get(f"{missing}?x=1", token="x.y.z", headers=faulty), 401, "invalid_token")
    problem(user.api.get(f"{missing}?x=1", headers=faulty), 422, "validation_error")
    problem(user.api.get(missing, headers=faulty), 404, "not_found")
    problem(user.api.get(own, headers=faulty), 412, "precondition_failed")
    assert user.api.get(own, headers=beyond).status_code == 304
    problem(user.api.get(own, headers={"Range": "bytes=999-"}), 416, "range_not_satisfiable")


def test_the_address_is_limited_before_the_password_is_looked_at(run_with: Start) -> None:
    tight = run_with(LIMIT_ANONYMOUS="1/hour")
    body = {"email": "canary-nobody@example.com", "password": "wrong"}
    problem(tight.post("/v1/auth/login", json=body), 401, "invalid_credentials")
    response = tight.post("/v1/auth/login", json=body)
    problem(response, 429, "rate_limited")
    for header in ("X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "Forwarded"):
        elsewhere = {header: "for=203.0.113.7" if header == "Forwarded" else "203.0.113.7"}
        problem(tight.post("/v1/auth/login", json=body, headers=elsewhere), 429, "rate_limited")
    assert response.headers["RateLimit-Policy"].endswith(";q=1;w=3600")
    assert ";r=0;t=" in response.headers["RateLimit"]


def test_a_role_is_asked_for_before_the_idempotency_key_and_the_body(user: Account, admin: Account) -> None:
    malformed = {"Idempotency-Key": "ü".encode(), "Content-Type": "text/plain"}
    problem(user.api.post("/v1/users", data="{", headers=malformed), 403, "forbidden")
    problem(admin.api.post("/v1/users", data="{", headers=malformed), 400, "idempotency_key_invalid")


def test_a_taken_address_is_409_after_all_other_checks(admin: Account, user: Account) -> None:
    body = {"email": user.email, "role": "user"}
    problem(admin.api.post("/v1/users", json={**body, "more": 1}), 422, "validation_error")
    problem(admin.api.post("/v1/users", json=body), 409, "email_taken")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "tab\tbed", "ümlaut"])
def test_a_malformed_idempotency_key_is_400(admin: Account, key: str) -> None:
    body = {"email": f"canary-{uuid4()}@example.com", "role": "user"}
    response = admin.api.post("/v1/users", json=body, headers={"Idempotency-Key": key.encode("latin-1")})
    problem(response, 400, "idempotency_key_invalid")
