import pytest
from sqlalchemy import func, select, update

from project.auth.models import Link
from project.database import db, transaction
from project.idempotency_keys import IdempotencyKey, State
from project.security import Role
from project.users.models import User
from tests.factories import PASSWORD

USERS = "/v1/users"
ANN = {"email": "ann@example.com", "role": "staff"}


@pytest.fixture
def count(in_app):
    """How many rows a model has."""
    return lambda model: in_app(lambda: db.session.scalar(select(func.count()).select_from(model)))


@pytest.fixture
def accept(client, run_jobs, outbox):
    """Set a password by the newest invitation."""

    def set_password():
        run_jobs()
        link = [message for message in outbox if message.template == "invitation"][-1].context["link"]
        token = link.partition("#token=")[2]
        return client.post("/v1/auth/reset-password", json={"token": token, "password": PASSWORD})

    return set_password


def test_creating_an_account_needs_a_token(client, count):
    response = client.post(USERS, json=ANN)
    assert (response.status_code, response.json["code"]) == (401, "token_required")
    assert count(User) == 0


@pytest.mark.parametrize("role", [Role.USER, Role.STAFF])
@pytest.mark.parametrize("body", [ANN, {}])
def test_creating_an_account_needs_an_admin(client, as_user, count, run_jobs, outbox, role, body):
    response = client.post(USERS, json=body, headers={**as_user(role=role), "Idempotency-Key": "k"})
    assert (response.status_code, response.json["code"]) == (403, "forbidden")
    run_jobs()
    assert (count(User), count(IdempotencyKey), outbox) == (1, 0, [])


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"role": ...}, "/role", "required"),
        ({"role": None}, "/role", "null_not_allowed"),
        ({"role": "root"}, "/role", "invalid_choice"),
        ({"role": "ADMIN"}, "/role", "invalid_choice"),
        ({"role": ""}, "/role", "invalid_choice"),
        ({"role": 1}, "/role", "invalid_type"),
        ({"role": ["admin"]}, "/role", "invalid_type"),
        ({"email": ...}, "/email", "required"),
        ({"email": None}, "/email", "null_not_allowed"),
        ({"email": "ann"}, "/email", "invalid_email"),
        ({"email": "Ann <ann@example.com>"}, "/email", "invalid_email"),
        ({"email": "a" * 300 + "@example.com"}, "/email", "invalid_email"),
        ({"email": "\N{KELVIN SIGN}ann@example.com"}, "/email", "invalid_email"),
        ({"email": 1}, "/email", "invalid_type"),
        ({"name": ""}, "/name", "invalid_length"),
        ({"name": "a" * 201}, "/name", "invalid_length"),
        ({"password": PASSWORD}, "/password", "unknown_field"),
        ({"password_hash": "x"}, "/password_hash", "unknown_field"),
        ({"email_verified": True}, "/email_verified", "unknown_field"),
        ({"is_active": False}, "/is_active", "unknown_field"),
        ({"id": "01234567-89ab-7cde-8f01-23456789abcd"}, "/id", "unknown_field"),
    ],
)
def test_an_invalid_account_is_not_created(client, as_admin, count, change, pointer, code):
    body = {name: value for name, value in {**ANN, **change}.items() if value is not ...}
    response = client.post(USERS, json=body, headers=as_admin)
    assert (response.status_code, response.json["code"]) == (422, "validation_error")
    assert [(error["pointer"], error["code"]) for error in response.json["errors"]] == [(pointer, code)]
    assert count(User) == 1


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("name", [{}, {"name": None}, {"name": "Ann"}])
def test_an_account_is_created_where_location_says(client, as_admin, role, name):
    response = client.post(USERS, json={"email": "ann@example.com", "role": role, **name}, headers=as_admin)
    assert response.status_code == 201
    data = response.json["data"]
    assert response.headers["Location"] == f"{USERS}/{data['id']}"
    assert (data["email"], data["name"], data["role"]) == ("ann@example.com", name.get("name"), role.value)
    assert (data["is_active"], data["email_verified"], data["last_login_at"]) == (True, False, None)
    found = client.get(response.headers["Location"], headers=as_admin)
    assert (found.json, found.headers["ETag"]) == (response.json, response.headers["ETag"])


def test_the_owner_is_invited_by_one_mail_to_set_a_password(client, as_admin, run_jobs, outbox, app):
    client.post(USERS, json=ANN, headers=as_admin)
    run_jobs()
    (message,) = outbox
    assert (message.template, message.to) == ("invitation", "ann@example.com")
    assert message.context["link"].startswith(f"{app.extensions['settings'].app_url}/invitation#token=")


def test_an_invited_account_signs_in_once_it_has_followed_the_invitation(client, as_admin, accept):
    client.post(USERS, json=ANN, headers=as_admin)
    credentials = {"email": "ann@example.com", "password": PASSWORD}
    for password in (PASSWORD, "", "!"):
        response = client.post("/v1/auth/login", json={**credentials, "password": password})
        assert (response.status_code, response.json["code"]) == (401, "invalid_credentials")
    assert accept().status_code == 204
    response = client.post("/v1/auth/login", json=credentials)
    assert response.status_code == 200
    user = response.json["data"]["user"]
    assert (user["role"], user["email_verified"]) == ("staff", True)


def test_an_invitation_works_once(client, as_admin, accept):
    client.post(USERS, json=ANN, headers=as_admin)
    assert accept().status_code == 204
    response = accept()
    assert (response.status_code, response.json["code"]) == (400, "invalid_link")


@pytest.mark.parametrize("attributes", [{}, {"is_active": False}, {"email_verified": False, "password": False}])
@pytest.mark.parametrize(
    ("taken", "spelling"),
    [
        ("ann@example.com", "ann@example.com"),
        ("ann@example.com", "ANN@EXAMPLE.COM"),
        ("ann@example.com", "aNN@eXample.com"),
        ("ann@example.com", " ann@example.com "),
        ("ann@xn--bcher-kva.example", "Ann@Bücher.example"),
    ],
)
def test_an_address_is_taken_in_every_spelling(
    client, as_admin, as_user, count, run_jobs, outbox, audited, taken, spelling, attributes
):
    as_user(email=taken, **attributes)
    response = client.post(USERS, json={"email": spelling, "role": "admin"}, headers=as_admin)
    assert (response.status_code, response.json["code"]) == (409, "email_taken")
    run_jobs()
    assert (count(User), count(Link), outbox, audited()) == (2, 0, [], [])


def test_a_repetition_gets_the_same_answer_and_creates_nothing(client, as_admin, count, run_jobs, outbox, audited):
    headers = {**as_admin, "Idempotency-Key": "k"}
    first = client.post(USERS, json=ANN, headers=headers)
    again = client.post(
        USERS, data=b'{ "role":"staff","email":"ann@example.com" }', headers=headers, content_type="application/json"
    )
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.data == first.data
    for name in ("Location", "ETag", "Content-Type"):
        assert again.headers[name] == first.headers[name]
    run_jobs()
    assert (count(User), len(outbox), len(audited())) == (2, 1, 1)


@pytest.mark.parametrize(
    "body", [{**ANN, "role": "admin"}, {**ANN, "name": None}, {**ANN, "email": "ben@example.com"}, {}]
)
def test_a_key_stands_for_one_body(client, as_admin, count, body):
    headers = {**as_admin, "Idempotency-Key": "k"}
    client.post(USERS, json=ANN, headers=headers)
    response = client.post(USERS, json=body, headers=headers)
    assert (response.status_code, response.json["code"]) == (422, "idempotency_key_reused")
    assert count(User) == 2


def test_a_key_is_of_one_admin(client, as_user):
    answers = [
        client.post(USERS, json=ANN, headers={**as_user(role=Role.ADMIN), "Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 409]
    assert answers[1].json["code"] == "email_taken"


def test_a_refused_request_leaves_the_key_to_the_corrected_one(client, as_admin):
    headers = {**as_admin, "Idempotency-Key": "k"}
    assert client.post(USERS, json={"email": "ann@example.com"}, headers=headers).status_code == 422
    assert client.post(USERS, json=ANN, headers=headers).status_code == 201


def test_an_account_whose_answer_was_lost_is_resumed(client, as_admin, in_app, count, run_jobs, outbox):
    headers = {**as_admin, "Idempotency-Key": "k"}
    first = client.post(USERS, json=ANN, headers=headers)

    def lose_the_answer() -> None:
        with transaction():
            lost = {"state": State.RETRYABLE, "response_status": None, "response_body": None}
            db.session.execute(update(IdempotencyKey).values(lost))

    in_app(lose_the_answer)
    again = client.post(USERS, json=ANN, headers=headers)
    assert (again.status_code, again.json) == (201, first.json)
    assert again.headers["Location"] == first.headers["Location"]
    run_jobs()
    assert (count(User), len(outbox)) == (2, 1)
