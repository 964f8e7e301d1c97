from uuid import UUID

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.database import db
from project.security import Role
from project.users import service as users
from tests.files.asking import a_file, begin_upload, code, errors, form, upload

USAGE = "/v1/files/usage"
QUOTAS = "/v1/files/quotas"
FILES = "/v1/files"
ID = "01234567-89ab-7cde-8f01-23456789abcd"
GIB = 1 << 30
MOST = 2**63 - 1


@pytest.fixture
def ann(as_user):
    """Whose quota it is about."""
    return as_user(email="ann@example.com")


@pytest.fixture
def path(ann):
    return f"/v1/files/quotas/{ann.user.id}"


@pytest.fixture
def audited(in_app):
    """The events of quotas in the audit log: who, whose and what."""
    events = select(AuditEvent).where(AuditEvent.action == "quota_changed").order_by(AuditEvent.id)

    def look() -> list[tuple]:
        found = db.session.scalars(events)
        return [(event.actor_id, event.target_type, event.target_id, event.data) for event in found]

    return lambda: in_app(look)


def usage(used: int = 0, reserved: int = 0, quota: int = GIB, *, files: int = 0) -> dict[str, int]:
    """What an account has stored, as it is answered."""
    left = max(0, quota - used - reserved)
    return {"used": used, "reserved": reserved, "quota": quota, "available": left, "file_count": files}


# --- one's own usage --------------------------------------------------------------------------------------------------


def test_usage_needs_a_token(client, ann):
    assert code(client.get(USAGE)) == (401, "token_required")
    assert code(client.get(USAGE, headers=ann.refreshing)) == (401, "invalid_token")


@pytest.mark.parametrize("role", Role)
def test_usage_is_what_was_uploaded_and_is_being_uploaded(client, as_user, in_app, role):
    caller, other = as_user(role=role), as_user()
    assert client.get("/v1/files/usage", headers=caller).json == {"data": usage()}
    upload(client, caller, b"x" * 100)
    upload(client, caller, b"x" * 11)
    in_app(begin_upload, caller.user.id)
    assert client.get("/v1/files/usage", headers=caller).json == {"data": usage(111, 10, files=2)}
    assert client.get("/v1/files/usage", headers=other).json == {"data": usage()}


def test_usage_takes_no_parameters(client, ann, as_admin):
    for caller in (ann, as_admin):
        response = client.get(f"{USAGE}?user_id={ann.user.id}", headers=caller)
        assert errors(response) == {"/query/user_id": "unknown_field"}


# --- quotas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["own", "missing"])
def test_quotas_are_for_admins_alone(client, as_user, as_staff, ann, path, audited, target):
    url = path if target == "own" else f"{QUOTAS}/{ID}"
    for body in ({"quota": 10}, {"quota": -1}, {}):
        assert code(client.get(url)) == code(client.put(url, json=body)) == (401, "token_required")
        for caller in (ann, as_user(), as_staff):
            assert code(client.get(url, headers=caller)) == (403, "forbidden")
            assert code(client.put(url, json=body, headers=caller)) == (403, "forbidden")
    assert client.get(USAGE, headers=ann).json == {"data": usage()}
    assert audited() == []


def test_an_admin_sees_and_sets_a_quota(client, as_admin, ann, path, audited):
    upload(client, ann, b"x" * 100)
    assert client.get(path, headers=as_admin).json == {"data": usage(100, files=1)}
    for quota, told in ((1000, 1000), (50, 50), (0, 0), (MOST, MOST), (None, GIB)):
        response = client.put(path, json={"quota": quota}, headers=as_admin)
        assert (response.status_code, response.json) == (200, {"data": usage(100, quota=told, files=1)})
        assert client.get(path, headers=as_admin).json == client.get(USAGE, headers=ann).json == response.json
    assert audited() == [
        (as_admin.user.id, "user", ann.user.id, {"quota": quota}) for quota in (1000, 50, 0, MOST, None)
    ]


def test_a_quota_counts_on_the_very_next_upload(client, as_admin, ann, path):
    def sent(size: int) -> int:
        return client.post(FILES, headers=ann, **form(a_file(b"x" * size))).status_code

    client.put(path, json={"quota": 100}, headers=as_admin)
    assert [sent(101), sent(60), sent(41), sent(40), sent(1)] == [413, 201, 413, 201, 413]
    client.put(path, json={"quota": 50}, headers=as_admin)
    assert client.get(USAGE, headers=ann).json == {"data": usage(100, quota=50, files=2)}
    assert sent(1) == 413
    client.put(path, json={"quota": None}, headers=as_admin)
    assert sent(1) == 201


def test_a_quota_is_of_one_account(client, as_admin, as_user, path):
    client.put(path, json={"quota": 0}, headers=as_admin)
    for other in (as_user(), as_admin):
        assert client.get(USAGE, headers=other).json == {"data": usage()}
    # An administrator's own is no exception.
    own = f"{QUOTAS}/{as_admin.user.id}"
    assert client.put(own, json={"quota": 1}, headers=as_admin).json == {"data": usage(quota=1)}


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({}, {"/quota": "required"}),
        ({"quota": -1}, {"/quota": "out_of_range"}),
        ({"quota": MOST + 1}, {"/quota": "out_of_range"}),
        ({"quota": -MOST}, {"/quota": "out_of_range"}),
        ({"quota": "1000"}, {"/quota": "invalid_type"}),
        ({"quota": 1000.0}, {"/quota": "invalid_type"}),
        ({"quota": True}, {"/quota": "invalid_type"}),
        ({"quota": [1000]}, {"/quota": "invalid_type"}),
        ({"quota": 1, "used": 0}, {"/used": "unknown_field"}),
        ({"quota_bytes": 1}, {"/quota": "required", "/quota_bytes": "unknown_field"}),
    ],
    ids=str,
)
def test_a_quota_has_to_be_a_number_of_bytes_or_null(client, as_admin, ann, path, audited, body, faults):
    for url in (path, f"{QUOTAS}/{ID}"):
        assert errors(client.put(url, json=body, headers=as_admin)) == faults
    assert client.get(USAGE, headers=ann).json == {"data": usage()}
    assert audited() == []


@pytest.mark.parametrize("quota", ["1e3", "1" * 20, "01", "+1", "0x10", "NaN"])
def test_a_number_is_written_as_json_has_them(client, as_admin, path, quota):
    body = b'{"quota": %s}' % quota.encode()
    response = client.put(path, data=body, content_type="application/json", headers=as_admin)
    assert response.status_code == (422 if quota == "1e3" else 400)


def test_there_has_to_be_an_account(client, as_admin, in_app, ann, path, audited):
    assert code(client.get(f"{QUOTAS}/x", headers=as_admin)) == (404, "not_found")
    in_app(users.erase_user, UUID(str(ann.user.id)), actor_id=None)
    for url in (f"{QUOTAS}/{ID}", path):
        assert code(client.get(url, headers=as_admin)) == (404, "not_found")
        assert code(client.put(url, json={"quota": 1}, headers=as_admin)) == (404, "not_found")
    assert audited() == []


def test_a_deactivated_account_keeps_what_it_has(client, as_admin, ann, path):
    upload(client, ann, b"x" * 100)
    client.patch(f"/v1/users/{ann.user.id}", json={"is_active": False}, headers=as_admin)
    assert client.get(path, headers=as_admin).json == {"data": usage(100, files=1)}
