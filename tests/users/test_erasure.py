from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import MetaData, func, select

from project.auth import links
from project.auth.models import KnownNetwork, Link, LinkPurpose, Session
from project.database import db, transaction, utcnow
from project.errors import NotFound
from project.idempotency_keys import IdempotencyKey, claim
from project.security import Role
from project.users import service
from project.users.models import User
from tests.factories import PASSWORD, make_user

USERS = "/v1/users"
ME = f"{USERS}/me"
ANN = "ann.canary@example.com"
OWN = (Session, Link, KnownNetwork, IdempotencyKey)


def leave_traces(user: User) -> None:
    """Give an account links of every kind, an idempotency key, and a network it has signed in from."""
    for purpose in LinkPurpose:
        links.send_link(user, purpose, to=str(user.email), email="new.canary@example.com")
    claim(user_id=user.id, key="a-key", method="POST", path=USERS, fingerprint="0")
    with transaction():
        db.session.add(KnownNetwork(user_id=user.id, network="203.0.113.0/24", last_login_at=utcnow()))


def count(model, user: User) -> int:
    return db.session.scalar(select(func.count()).select_from(model).where(model.user_id == user.id)) or 0


@pytest.fixture
def ann(as_user, in_app):
    """A signed-in user with everything that belongs to one."""
    caller = as_user(email=ANN, name="Ann Canary", role=Role.STAFF, last_login_at=utcnow())
    in_app(leave_traces, caller.user)
    return caller


@pytest.fixture(params=["by an admin", "by oneself"])
def erase(request, client, ann, as_admin):
    """Erase Ann, in both of the ways."""

    def erase_ann():
        if request.param == "by an admin":
            return client.delete(f"{USERS}/{ann.user.id}", headers=as_admin)
        return client.post(f"{ME}/erase", json={"password": PASSWORD}, headers=ann)

    return erase_ann


def test_erasing_needs_a_token(client, ann, stored):
    for response in (
        client.delete(f"{USERS}/{ann.user.id}"),
        client.post(f"{ME}/erase", json={"password": PASSWORD}),
        client.post(f"{ME}/erase", json={"password": PASSWORD}, headers=ann.refreshing),
    ):
        assert response.status_code == 401
    assert stored(ann.user).email == ANN


@pytest.mark.parametrize("role", [Role.USER, Role.STAFF])
def test_erasing_others_needs_an_admin(client, as_user, ann, stored, role):
    response = client.delete(f"{USERS}/{ann.user.id}", headers=as_user(role=role))
    assert (response.status_code, response.json["code"]) == (403, "forbidden")
    assert stored(ann.user).email == ANN


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"password": "wrong horse battery staple"}, "/password", "invalid_credentials"),
        ({"password": PASSWORD + " "}, "/password", "invalid_credentials"),
        ({"password": ""}, "/password", "invalid_credentials"),
        ({"password": "a" * 1025}, "/password", "invalid_length"),
        ({"password": None}, "/password", "null_not_allowed"),
        ({"password": True}, "/password", "invalid_type"),
        ({}, "/password", "required"),
        ({"password": PASSWORD, "user_id": str(uuid4())}, "/user_id", "unknown_field"),
    ],
)
def test_erasing_oneself_needs_the_password(client, ann, stored, audited, body, pointer, code):
    response = client.post(f"{ME}/erase", json=body, headers=ann)
    assert (response.status_code, response.json["code"]) == (422, "validation_error")
    assert [(error["pointer"], error["code"]) for error in response.json["errors"]] == [(pointer, code)]
    assert stored(ann.user).email == ANN
    assert audited() == []


def test_an_erased_account_keeps_its_row_without_the_person(erase, ann, stored):
    response = erase()
    assert (response.status_code, response.data) == (204, b"")
    found = stored(ann.user)
    assert found is not None
    assert (found.email, found.name, found.password_hash, found.erased_at is not None) == (None, None, None, True)
    assert (found.role, found.is_active, found.email_verified) == (Role.USER, False, False)
    assert found.version == ann.user.version + 1


def test_sessions_links_networks_and_keys_go_with_the_account(erase, ann, in_app):
    assert [in_app(count, model, ann.user) for model in OWN] == [1, 4, 1, 1]
    erase()
    assert [in_app(count, model, ann.user) for model in OWN] == [0, 0, 0, 0]


def test_others_keep_theirs(erase, as_user, in_app):
    other = as_user(email="ben@example.com")
    in_app(leave_traces, other.user)
    erase()
    assert [in_app(count, model, other.user) for model in OWN] == [1, 4, 1, 1]


def test_nothing_personal_is_left_in_any_table(erase, client, ann, in_app, run_jobs):
    def dump() -> str:
        metadata = MetaData()
        metadata.reflect(db.engine)
        rows = [row for table in metadata.sorted_tables for row in db.session.execute(select(table))]
        return str(rows)

    assert "canary" in in_app(dump)
    assert "203.0.113" in in_app(dump)
    client.post("/v1/auth/change-email", json={"new_email": "later.canary@x.org", "password": PASSWORD}, headers=ann)
    erase()
    run_jobs()
    assert "canary" not in in_app(dump).lower()
    assert "203.0.113" not in in_app(dump)


def test_the_tokens_of_an_erased_account_end(erase, client, ann):
    erase()
    for response in (
        client.get(ME, headers=ann),
        client.get(ME, headers={**ann, "If-None-Match": "*"}),
        client.post(f"{ME}/erase", json={"password": PASSWORD}, headers=ann),
        client.post("/v1/auth/refresh", headers=ann.refreshing),
    ):
        assert (response.status_code, response.json["code"]) == (401, "session_revoked")


def test_the_links_of_an_erased_account_end(erase, client, ann, outbox):
    erase()
    for message, path in zip(
        outbox, ["verify-email", "reset-password", "reset-password", "confirm-email"], strict=True
    ):
        body = {"token": message.context["link"].partition("#token=")[2]}
        body |= {"password": PASSWORD} if path == "reset-password" else {}
        response = client.post(f"/v1/auth/{path}", json=body)
        assert (response.status_code, response.json["code"]) == (400, "invalid_link")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"is_active": True}),
        ("DELETE", "", None),
        ("DELETE", "/sessions", None),
        ("POST", "/invitation", None),
    ],
)
def test_an_erased_account_is_there_for_nobody(erase, client, ann, as_admin, audited, method, path, body):
    erase()
    response = client.open(f"{USERS}/{ann.user.id}{path}", method=method, json=body, headers=as_admin)
    assert (response.status_code, response.json["code"]) == (404, "not_found")
    assert len(audited()) == 1


def test_the_next_owner_of_the_address_starts_from_nothing(erase, client, ann, as_admin, run_jobs, outbox):
    client.patch(f"{USERS}/{as_admin.user.id}", json={"name": "Admin"}, headers=as_admin)
    erase()
    outbox.clear()
    password = "another horse battery staple"
    client.post("/v1/auth/register", json={"email": ANN.upper(), "password": password})
    run_jobs()
    (message,) = outbox
    assert (message.template, message.to) == ("verify_email", ANN)
    client.post("/v1/auth/verify-email", json={"token": message.context["link"].partition("#token=")[2]})
    response = client.post("/v1/auth/login", json={"email": ANN, "password": PASSWORD})
    assert response.status_code == 401
    data = client.post("/v1/auth/login", json={"email": ANN, "password": password}).json["data"]
    assert data["user"]["id"] != str(ann.user.id)
    assert (data["user"]["email"], data["user"]["name"], data["user"]["role"]) == (ANN, None, "user")
    headers = {"Authorization": f"Bearer {data['access_token']}"}
    assert len(client.get("/v1/auth/sessions", headers=headers).json["data"]) == 1
    assert client.get(ME, headers=ann).status_code == 401


def test_an_admin_may_invite_the_address_again(erase, client, as_admin):
    erase()
    response = client.post(USERS, json={"email": ANN, "role": "user"}, headers=as_admin)
    assert response.status_code == 201


def test_only_the_version_that_was_read_is_deleted(client, ann, as_admin, stored):
    path = f"{USERS}/{ann.user.id}"
    old = client.get(path, headers=as_admin).headers["ETag"]
    tag = client.patch(ME, json={"name": "Ann"}, headers=ann).headers["ETag"]
    for header in (old, f"W/{tag}", '"other"'):
        response = client.delete(path, headers={**as_admin, "If-Match": header})
        assert (response.status_code, response.json["code"]) == (412, "precondition_failed")
    assert stored(ann.user).email == ANN
    assert client.delete(path, headers={**as_admin, "If-Match": tag}).status_code == 204
    assert client.delete(path, headers={**as_admin, "If-Match": tag}).status_code == 404


def test_an_erasure_is_one_event_of_ids_only(erase, request, ann, as_admin, audited):
    erase()
    (event,) = audited()
    by_admin = "by an admin" in request.node.name
    assert event.actor_id == (as_admin.user.id if by_admin else ann.user.id)
    assert (event.action, event.target_type, event.target_id) == ("user_erased", "user", ann.user.id)
    assert event.data == {}


def test_of_two_erasures_at_once_one_is_told_of(in_app, at_once, audited):
    user = in_app(make_user)
    results = at_once(*[partial(service.erase_user, user.id, actor_id=None)] * 2)
    assert [isinstance(result, NotFound) for result in results].count(True) == 1
    assert len(audited()) == 1


@pytest.fixture
def on_erase(monkeypatch):
    """Register erasers for one test only."""
    monkeypatch.setattr(service, "_erasers", list(service._erasers))
    return service.on_erase


def test_features_erase_in_the_same_transaction(on_erase, erase, ann, in_app):
    seen = []

    def note(user_id) -> None:
        erased_at = db.session.scalar(select(User.erased_at).where(User.id == user_id))
        seen.append((user_id, db.session().info["transaction"], erased_at is not None))

    on_erase(note)
    erase()
    assert seen == [(ann.user.id, True, True)]


def test_a_feature_that_cannot_erase_undoes_everything(on_erase, session, audited):
    user = make_user(email=ANN, name="Ann Canary")
    leave_traces(user)

    def refuse(_user_id) -> None:
        raise ConnectionError("the storage is away")

    on_erase(refuse)
    with pytest.raises(ConnectionError):
        service.erase_user(user.id, actor_id=None)
    session.expire_all()
    found = service.get_user(user.id)
    assert (found.email, found.name, found.version) == (ANN, "Ann Canary", 1)
    assert [count(model, user) for model in (Link, KnownNetwork)] == [4, 1]
    assert audited() == []
