"""What admins do for an account besides changing it: end its sessions, invite its owner again."""

from uuid import uuid4

import pytest

from project.security import Role
from tests.factories import PASSWORD

USERS = "/v1/users"
ME = f"{USERS}/me"
OPERATIONS = [("DELETE", "sessions"), ("POST", "invitation")]
every_operation = pytest.mark.parametrize(("method", "name"), OPERATIONS)


@pytest.fixture
def ben(as_user):
    """A signed-in user who is being helped."""
    return as_user(email="ben@example.com")


@pytest.fixture
def guest(client, as_admin):
    """The id of an account that was invited."""
    body = {"email": "guest@example.com", "role": "user"}
    return client.post(USERS, json=body, headers=as_admin).json["data"]["id"]


@pytest.fixture
def invitations(run_jobs, outbox):
    """The tokens in the invitations so far, the newest last."""

    def tokens() -> list[str]:
        run_jobs()
        return [m.context["link"].partition("#token=")[2] for m in outbox if m.template == "invitation"]

    return tokens


@every_operation
def test_helping_needs_a_token(client, ben, method, name):
    response = client.open(f"{USERS}/{ben.user.id}/{name}", method=method)
    assert (response.status_code, response.json["code"]) == (401, "token_required")


@every_operation
@pytest.mark.parametrize("role", [Role.USER, Role.STAFF])
def test_helping_needs_an_admin(client, as_user, ben, audited, method, name, role):
    for user_id in (ben.user.id, uuid4()):
        response = client.open(f"{USERS}/{user_id}/{name}", method=method, headers=as_user(role=role))
        assert (response.status_code, response.json["code"]) == (403, "forbidden")
    assert client.get(ME, headers=ben).status_code == 200
    assert audited() == []


@every_operation
def test_there_must_be_an_account_to_help(client, as_admin, erased, audited, method, name):
    before = len(audited())
    for user_id in (erased.id, uuid4()):
        response = client.open(f"{USERS}/{user_id}/{name}", method=method, headers=as_admin)
        assert (response.status_code, response.json["code"]) == (404, "not_found")
    assert len(audited()) == before


def test_every_session_of_the_account_ends_at_once(client, as_admin, sign_in, ben):
    callers = [ben, sign_in(ben.user)]
    response = client.delete(f"{USERS}/{ben.user.id}/sessions", headers=as_admin)
    assert (response.status_code, response.data) == (204, b"")
    for caller in callers:
        for again in (client.get(ME, headers=caller), client.post("/v1/auth/refresh", headers=caller.refreshing)):
            assert (again.status_code, again.json["code"]) == (401, "session_revoked")
    assert client.get(ME, headers=as_admin).status_code == 200


def test_others_stay_signed_in(client, as_admin, as_user, ben):
    other = as_user()
    client.delete(f"{USERS}/{ben.user.id}/sessions", headers=as_admin)
    assert client.get(ME, headers=other).status_code == 200


def test_who_was_signed_out_may_sign_in_again(client, as_admin, ben):
    client.delete(f"{USERS}/{ben.user.id}/sessions", headers=as_admin)
    response = client.post("/v1/auth/login", json={"email": "ben@example.com", "password": PASSWORD})
    assert response.status_code == 200
    headers = {"Authorization": f"Bearer {response.json['data']['access_token']}"}
    assert client.get(ME, headers=headers).status_code == 200
    assert len(client.get("/v1/auth/sessions", headers=headers).json["data"]) == 1


def test_ending_no_sessions_is_no_error(client, as_admin, guest):
    for _ in range(2):
        assert client.delete(f"{USERS}/{guest}/sessions", headers=as_admin).status_code == 204


def test_a_second_invitation_replaces_the_first(client, as_admin, guest, invitations):
    response = client.post(f"{USERS}/{guest}/invitation", headers=as_admin)
    assert (response.status_code, response.json) == (202, {"data": {"status": "accepted"}})
    first, second = invitations()
    for token, status in ((first, 400), (second, 204), (second, 400)):
        answer = client.post("/v1/auth/reset-password", json={"token": token, "password": PASSWORD})
        assert answer.status_code == status


def test_who_registered_and_never_confirmed_may_be_invited(client, as_admin, as_user, invitations):
    waiting = as_user(email_verified=False).user
    assert client.post(f"{USERS}/{waiting.id}/invitation", headers=as_admin).status_code == 202
    (token,) = invitations()
    body = {"token": token, "password": "another horse battery staple"}
    assert client.post("/v1/auth/reset-password", json=body).status_code == 204
    login = {"email": waiting.email, "password": "another horse battery staple"}
    assert client.post("/v1/auth/login", json=login).status_code == 200


@pytest.mark.parametrize("attributes", [{}, {"is_active": False}])
def test_who_has_confirmed_is_not_invited(client, as_admin, as_user, audited, invitations, attributes):
    user = as_user(**attributes).user
    response = client.post(f"{USERS}/{user.id}/invitation", headers=as_admin)
    assert (response.status_code, response.json["code"]) == (409, "already_verified")
    assert (invitations(), audited()) == ([], [])


def test_an_invitation_is_void_while_the_account_is_inactive(client, as_admin, guest, invitations):
    (token,) = invitations()
    body = {"token": token, "password": PASSWORD}
    for is_active, status in ((False, 400), (True, 204)):
        client.patch(f"{USERS}/{guest}", json={"is_active": is_active}, headers=as_admin)
        assert client.post("/v1/auth/reset-password", json=body).status_code == status


@pytest.mark.parametrize(
    ("method", "name", "action"), [("DELETE", "sessions", "sessions_ended"), ("POST", "invitation", "user_invited")]
)
def test_helping_is_one_event_with_its_actor_and_target(client, as_admin, as_user, audited, method, name, action):
    user = as_user(email_verified=False).user
    client.open(f"{USERS}/{user.id}/{name}", method=method, headers=as_admin)
    (event,) = audited()
    assert (event.action, event.actor_id) == (action, as_admin.user.id)
    assert (event.target_type, event.target_id, event.data) == ("user", user.id, {})
