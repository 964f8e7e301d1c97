from functools import partial
from uuid import uuid4

import pytest

from project.errors import PreconditionFailed
from project.security import Role
from project.users import service
from tests.factories import PASSWORD, make_user

USERS = "/v1/users"


@pytest.fixture
def ben(as_user):
    """A signed-in user whom others change."""
    return as_user(email="ben@example.com", name="Before")


@pytest.fixture
def path(ben):
    return f"{USERS}/{ben.user.id}"


def test_changing_an_account_needs_a_token(client, path):
    response = client.patch(path, json={"name": "After"})
    assert (response.status_code, response.json["code"]) == (401, "token_required")


@pytest.mark.parametrize("role", [Role.USER, Role.STAFF])
@pytest.mark.parametrize("body", [{"name": "After"}, {"role": "admin"}, {"is_active": False}, {}, {"nothing": 1}])
def test_changing_an_account_needs_an_admin(client, as_user, ben, path, stored, audited, role, body):
    response = client.patch(path, json=body, headers=as_user(role=role))
    assert (response.status_code, response.json["code"]) == (403, "forbidden")
    found = stored(ben.user)
    assert (found.name, found.role, found.is_active, found.version) == ("Before", Role.USER, True, 1)
    assert audited() == []


@pytest.mark.parametrize("role", [Role.USER, Role.STAFF])
def test_nobody_promotes_themselves(client, as_user, stored, role):
    caller = as_user(role=role)
    response = client.patch(f"{USERS}/{caller.user.id}", json={"role": "admin"}, headers=caller)
    assert response.status_code == 403
    assert stored(caller.user).role is role


@pytest.mark.parametrize("headers", [{}, {"If-Match": "*"}, {"If-Match": '"other"'}])
def test_there_must_be_an_account_to_change(client, as_admin, erased, stored, audited, headers):
    before = len(audited())
    for user_id in (erased.id, uuid4()):
        for body in ({"name": "After", "is_active": True}, {}):
            response = client.patch(f"{USERS}/{user_id}", json=body, headers={**as_admin, **headers})
            assert (response.status_code, response.json["code"]) == (404, "not_found")
    assert (stored(erased).name, len(audited())) == (None, before)


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"role": "root"}, "/role", "invalid_choice"),
        ({"role": None}, "/role", "null_not_allowed"),
        ({"role": True}, "/role", "invalid_type"),
        ({"is_active": None}, "/is_active", "null_not_allowed"),
        ({"is_active": "false"}, "/is_active", "invalid_type"),
        ({"is_active": 0}, "/is_active", "invalid_type"),
        ({"name": ""}, "/name", "invalid_length"),
        ({"email": "new@example.com"}, "/email", "unknown_field"),
        ({"email_verified": True}, "/email_verified", "unknown_field"),
        ({"password": PASSWORD}, "/password", "unknown_field"),
        ({"session_epoch": 9}, "/session_epoch", "unknown_field"),
        ({"version": 9}, "/version", "unknown_field"),
    ],
)
def test_an_invalid_change_is_refused_wholly(client, as_admin, ben, path, stored, body, pointer, code):
    for target in (path, f"{USERS}/{uuid4()}"):
        response = client.patch(target, json={"name": "After", **body}, headers=as_admin)
        assert (response.status_code, response.json["code"]) == (422, "validation_error")
        assert [(error["pointer"], error["code"]) for error in response.json["errors"]] == [(pointer, code)]
    assert (stored(ben.user).name, stored(ben.user).version) == ("Before", 1)


def test_a_change_is_answered_with_the_new_version(client, as_admin, ben, path):
    body = {"name": "After", "role": "staff"}
    response = client.patch(path, json=body, headers=as_admin)
    assert response.status_code == 200
    data = response.json["data"]
    assert (data["name"], data["role"], data["is_active"]) == ("After", "staff", True)
    found = client.get(path, headers=as_admin)
    assert (found.json, found.headers["ETag"]) == (response.json, response.headers["ETag"])
    assert client.get(f"{USERS}/me", headers=ben).headers["ETag"] == response.headers["ETag"]


def test_the_version_that_was_read_is_changed_once(client, as_admin, path):
    tag = client.get(path, headers=as_admin).headers["ETag"]
    headers = {**as_admin, "If-Match": tag}
    assert client.patch(path, json={"name": "First"}, headers=headers).status_code == 200
    response = client.patch(path, json={"name": "Second"}, headers=headers)
    assert (response.status_code, response.json["code"]) == (412, "precondition_failed")
    assert client.get(path, headers=as_admin).json["data"]["name"] == "First"


def test_an_empty_change_keeps_the_version_and_is_no_event(client, as_admin, path, audited):
    before = client.get(path, headers=as_admin)
    response = client.patch(path, json={}, headers={**as_admin, "If-Match": before.headers["ETag"]})
    assert (response.status_code, response.json) == (200, before.json)
    assert response.headers["ETag"] == before.headers["ETag"]
    assert audited() == []


def test_a_new_role_counts_on_the_very_next_request(client, as_admin, ben, path):
    def seen(path: str) -> int:
        return client.get(path, headers=ben).status_code

    for role, may_list, may_audit in [
        ("staff", 200, 403),
        ("admin", 200, 200),
        ("staff", 200, 403),
        ("user", 403, 403),
    ]:
        assert client.patch(path, json={"role": role}, headers=as_admin).status_code == 200
        assert (seen(USERS), seen("/v1/audit-events"), seen(f"{USERS}/me")) == (may_list, may_audit, 200)


def test_an_admin_who_is_demoted_administers_no_more(client, as_admin, as_user, path, stored, ben):
    other = as_user(role=Role.ADMIN)
    assert client.patch(path, json={"name": "First"}, headers=other).status_code == 200
    client.patch(f"{USERS}/{other.user.id}", json={"role": "staff"}, headers=as_admin)
    assert client.patch(path, json={"name": "Second"}, headers=other).status_code == 403
    assert stored(ben.user).name == "First"


@pytest.mark.parametrize("then", [{}, {"is_active": True}], ids=["inactive", "activated again"])
def test_deactivation_ends_every_session_for_good(client, as_admin, sign_in, ben, path, then):
    callers = [ben, sign_in(ben.user)]
    assert client.patch(path, json={"is_active": False}, headers=as_admin).json["data"]["is_active"] is False
    client.patch(path, json=then, headers=as_admin)
    for caller in callers:
        for response in (
            client.get(f"{USERS}/me", headers=caller),
            client.post("/v1/auth/refresh", headers=caller.refreshing),
            client.post("/v1/auth/logout", headers=caller),
        ):
            assert (response.status_code, response.json["code"]) == (401, "session_revoked")


def test_an_account_signs_in_only_while_it_is_active(client, as_admin, path):
    credentials = {"email": "ben@example.com", "password": PASSWORD}
    for is_active, status in ((False, 401), (True, 200)):
        client.patch(path, json={"is_active": is_active}, headers=as_admin)
        assert client.post("/v1/auth/login", json=credentials).status_code == status


def test_other_changes_leave_sessions_alive(client, as_admin, ben, path):
    client.patch(path, json={"name": "After", "role": "staff", "is_active": True}, headers=as_admin)
    assert client.get(f"{USERS}/me", headers=ben).status_code == 200
    assert client.post("/v1/auth/refresh", headers=ben.refreshing).status_code == 200


def test_nobody_else_is_changed(client, as_admin, as_user, path, stored):
    other = as_user(name="Other")
    client.patch(path, json={"name": "After", "role": "staff", "is_active": False}, headers=as_admin)
    assert client.get(f"{USERS}/me", headers=other).status_code == 200
    assert (stored(other.user).version, stored(as_admin.user).version) == (1, 1)


@pytest.mark.parametrize(
    ("body", "events"),
    [
        ({"role": "staff"}, [("role_changed", {"role": "staff"})]),
        ({"is_active": False}, [("user_deactivated", {})]),
        ({"is_active": True}, [("user_activated", {})]),
        ({"name": "Canary"}, [("name_changed", {})]),
        ({"name": None}, [("name_changed", {})]),
        (
            {"is_active": False, "name": "Canary", "role": "admin"},
            [("name_changed", {}), ("role_changed", {"role": "admin"}), ("user_deactivated", {})],
        ),
    ],
)
def test_each_change_is_one_event_with_its_actor_and_target(client, as_admin, ben, path, audited, body, events):
    client.patch(path, json=body, headers=as_admin)
    found = audited()
    assert sorted((event.action, event.data) for event in found) == events
    assert {(event.actor_id, event.target_type, event.target_id) for event in found} == {
        (as_admin.user.id, "user", ben.user.id)
    }


def test_of_changes_of_one_version_at_once_one_wins(in_app, at_once):
    """The check of If-Match is the condition of the UPDATE, so two that have read the same cannot both pass."""
    user = in_app(make_user)
    for version in range(1, 11):
        expected = frozenset({(user.id, version)})
        change = partial(service.update_user, user.id, actor_id=None, expected=expected)
        results = at_once(*(partial(change, name=name) for name in "abcd"))
        winners = [result for result in results if not isinstance(result, PreconditionFailed)]
        assert len(winners) == 1
        found = in_app(service.get_user, user.id)
        assert (found.name, found.version) == (winners[0].name, version + 1)
