import re

import pytest

from project.database import db, utcnow
from project.users import service as users
from tests.auth.asking import ANN, statements_on
from tests.auth.forgery import claims_of
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.usefixtures("hasher")

NEW_PASSWORD = "tulip anvil grape lantern"
WRONG = "wrong horse battery staple"
ACCEPTED = {"data": {"status": "accepted"}}
USER_KEYS = {"id", "email", "name", "role", "is_active", "email_verified", "created_at", "updated_at", "last_login_at"}
# Every kind of account that an address may belong to; each has an address of its own.
KINDS = {
    "confirmed": {},
    "unverified": {"email_verified": False},
    "inactive": {"is_active": False},
    "invited": {"email_verified": False, "password": False},
}


@pytest.fixture
def post(client):
    """Post JSON to an operation of auth."""
    return lambda operation, **body: client.post(f"/v1/auth/{operation}", json=body)


@pytest.fixture
def addresses(in_app):
    """An address without an account, and one of each kind."""
    for kind, attributes in KINDS.items():
        in_app(make_user, email=f"{kind}@example.com", **attributes)
    return ["nobody@example.com", *(f"{kind}@example.com" for kind in KINDS)]


def seen(response) -> tuple:
    """What a client sees of an answer, less what differs from request to request."""
    body = {**response.json, "request_id": ""}
    headers = {name: text for name, text in response.headers if name not in {"X-Request-ID", "RateLimit"}}
    return response.status_code, body, headers


def fields(response) -> list[tuple[str, str]]:
    """The fields that a 422 refuses, and why."""
    assert (response.status_code, response.json["code"]) == (422, "validation_error")
    return [(field["pointer"], field["code"]) for field in response.json["errors"]]


def problem(response) -> tuple[int, str]:
    assert response.content_type == "application/problem+json"
    return response.status_code, response.json["code"]


@pytest.mark.parametrize(
    ("name", "extra"), [("register", {"password": NEW_PASSWORD}), ("resend-verification", {}), ("forgot-password", {})]
)
def test_the_answer_does_not_tell_who_has_an_account_nor_does_its_work(app, in_app, post, addresses, name, extra):
    engine = in_app(lambda: db.engine)
    answers, work = [], []
    for email in addresses:
        with statements_on(engine) as statements:
            answers.append(seen(post(name, email=email, **extra)))
        work.append(statements)
    assert answers == [answers[0]] * len(addresses)
    assert answers[0][:2] == (202, {**ACCEPTED, "request_id": ""})
    assert work == [work[0]] * len(addresses)
    assert work[0]
    assert not re.search(r"\busers\b", str(work[0]))


def test_a_sign_in_is_refused_in_one_way(app, in_app, post, addresses):
    engine = in_app(lambda: db.engine)
    answers, work = [], []
    for email in addresses:
        for password in (PASSWORD, WRONG):
            if (email, password) == ("confirmed@example.com", PASSWORD):
                continue
            with statements_on(engine) as statements:
                answers.append(seen(post("login", email=email, password=password)))
            if (email, password) != ("unverified@example.com", PASSWORD):
                work.append(statements)
    assert answers == [answers[0]] * 9
    assert answers[0][0] == 401
    assert answers[0][1]["code"] == "invalid_credentials"
    assert answers[0][2]["WWW-Authenticate"].startswith("Bearer ")
    assert work == [work[0]] * 8


def test_signing_in_gives_both_tokens_and_the_account(post, in_app):
    in_app(make_user, email=ANN, name="Ann")
    response = post("login", email=ANN, password=PASSWORD)
    data = response.json["data"]
    assert (response.status_code, set(response.json)) == (200, {"data"})
    assert set(data) == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (data["token_type"], data["expires_in"]) == ("Bearer", 600)
    assert set(data["user"]) == USER_KEYS
    assert (data["user"]["email"], data["user"]["name"], data["user"]["role"]) == (ANN, "Ann", "user")
    assert data["user"]["last_login_at"].startswith(f"{utcnow():%Y-%m-%dT}")
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers
    assert "Location" not in response.headers


def test_who_is_signed_in_may_sign_in_again_into_a_session_of_its_own(client, as_user):
    caller = as_user(email=ANN)
    response = client.post("/v1/auth/login", json={"email": ANN, "password": PASSWORD}, headers=caller)
    first, second = claims_of(caller.access_token), claims_of(response.json["data"]["access_token"])
    assert first["sub"] == second["sub"]
    assert first["sid"] != second["sid"]
    assert client.get("/v1/auth/sessions", headers=caller).status_code == 200


def test_one_address_is_one_account_however_it_is_spelt(post, run_jobs, outbox):
    for email in ("Ann@Example.com", " ann@example.com", "ann@EXAMPLE.COM"):
        assert post("register", email=email, password=PASSWORD).status_code == 202
    run_jobs()
    assert [message.to for message in outbox] == [ANN] * 3
    token = outbox[-1].context["link"].partition("#token=")[2]
    assert post("verify-email", token=token).json["data"]["email"] == ANN
    for email in ("ann@example.com", "ANN@Example.COM", "  ann@example.com "):
        assert post("login", email=email, password=PASSWORD).status_code == 200


def test_an_international_domain_is_one_account_in_both_spellings(post, mailed_token):
    post("register", email="ann@bücher.example", password=PASSWORD)
    post("verify-email", token=mailed_token("verify_email"))
    response = post("login", email="ann@xn--bcher-kva.example", password=PASSWORD)
    assert response.json["data"]["user"]["email"] == "ann@xn--bcher-kva.example"


def test_what_is_no_address_is_refused(post):
    for name in ("register", "login", "resend-verification", "forgot-password"):
        body = {} if name in {"resend-verification", "forgot-password"} else {"password": PASSWORD}
        for email in ("ann", "ann@example.com\r\nBcc: eve@example.com", "a@x.com,b@y.com", "a" * 243 + "@example.com"):
            assert fields(post(name, email=email, **body)) == [("/email", "invalid_email")], (name, email)


@pytest.mark.parametrize("field", ["role", "roles", "is_admin", "is_active", "email_verified", "id", "password_hash"])
def test_nobody_registers_with_more_than_is_asked_for(post, in_app, run_jobs, field):
    response = post("register", email=ANN, password=PASSWORD, **{field: "admin"})
    assert fields(response) == [(f"/{field}", "unknown_field")]
    run_jobs()
    assert in_app(users.find_by_email, ANN) is None


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("tulip anvil", "password_too_short"),
        ("tulip anvil grape " * 15, "password_too_long"),
        ("tulip anvil grape " * 12_000, "password_too_long"),
        ("projectproject1", "password_too_common"),
    ],
)
def test_a_bad_password_is_named_and_never_repeated(post, hasher, password, code):
    for name, body in (("register", {"email": ANN}), ("reset-password", {"token": "x"})):
        response = post(name, password=password, **body)
        assert fields(response) == [("/password", code)]
        assert password not in response.text
    assert hasher.hashed == 0


@pytest.mark.parametrize(
    ("length", "expected"), [(1025, (422, "validation_error")), (1_000_000, (413, "payload_too_large"))]
)
def test_a_huge_password_is_not_verified(post, in_app, hasher, length, expected):
    in_app(make_user, email=ANN)
    assert problem(post("login", email=ANN, password="x" * length)) == expected
    assert hasher.verified == 0


def test_a_wrong_password_is_not_repeated(post, in_app):
    in_app(make_user, email=ANN)
    assert WRONG not in post("login", email=ANN, password=WRONG).text


def test_a_verified_address_is_answered_with_its_account(post, mailed_token):
    post("register", email=ANN, password=PASSWORD, name="Ann")
    response = post("verify-email", token=mailed_token("verify_email"))
    assert response.status_code == 200
    assert set(response.json["data"]) == USER_KEYS
    assert response.json["data"]["email_verified"] is True


def test_a_bad_link_is_refused_in_one_way(post, in_app, mailed_token):
    in_app(make_user, email=ANN)
    post("forgot-password", email=ANN)
    used = mailed_token("reset_password")
    assert post("reset-password", token=used, password=NEW_PASSWORD).status_code == 204
    for token in (used, used[::-1], "x", "x" * 200, "ä"):
        assert problem(post("verify-email", token=token)) == (400, "invalid_link")
        assert problem(post("confirm-email", token=token)) == (400, "invalid_link")
        assert problem(post("reset-password", token=token, password=NEW_PASSWORD)) == (400, "invalid_link")


@pytest.mark.parametrize("token", ["", "x" * 201, None, 1])
def test_a_token_that_cannot_be_one_is_not_valid(post, token):
    for name, body in (("verify-email", {}), ("confirm-email", {}), ("reset-password", {"password": NEW_PASSWORD})):
        ((pointer, _),) = fields(post(name, token=token, **body))
        assert pointer == "/token"


def test_a_reset_is_answered_with_nothing(post, in_app, mailed_token):
    in_app(make_user, email=ANN)
    post("forgot-password", email=ANN)
    response = post("reset-password", token=mailed_token("reset_password"), password=NEW_PASSWORD)
    assert (response.status_code, response.data) == (204, b"")
    assert post("login", email=ANN, password=NEW_PASSWORD).status_code == 200


def test_a_reset_is_of_the_links_own_account(post, in_app, mailed_token):
    in_app(make_user, email=ANN)
    post("forgot-password", email=ANN)
    body = {"token": mailed_token("reset_password"), "password": NEW_PASSWORD, "email": "ben@example.com"}
    assert fields(post("reset-password", **body)) == [("/email", "unknown_field")]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/evil"},
        {"Forwarded": "host=evil.example;proto=https", "X-Original-URL": "http://evil.example"},
        {"Host": "localhost:9999"},
    ],
)
def test_a_mailed_link_leads_to_the_configured_client(client, in_app, run_jobs, outbox, headers):
    in_app(make_user, email=ANN)
    assert client.post("/v1/auth/forgot-password", json={"email": ANN}, headers=headers).status_code == 202
    run_jobs()
    assert outbox[0].context["link"].startswith("http://localhost:5173/reset-password#token=")
    assert "evil" not in outbox[0].text + outbox[0].html


def test_an_unknown_host_is_refused_before_anything_happens(client, in_app, sent):
    in_app(make_user, email=ANN)
    response = client.post("/v1/auth/forgot-password", json={"email": ANN}, headers={"Host": "evil.example"})
    assert response.status_code == 400
    assert sent() == []


@pytest.mark.parametrize("name", ["register", "login", "forgot-password"])
def test_an_address_has_a_hundred_tries_of_each_operation(client, name):
    path = f"/v1/auth/{name}"
    statuses = {client.post(path, json={}).status_code for _ in range(100)}
    assert statuses == {422}, "what is refused counts as well"
    response = client.post(path, json={})
    assert problem(response) == (429, "rate_limited")
    assert 0 < int(response.headers["Retry-After"]) <= 901
    assert response.headers["RateLimit-Policy"].endswith(";q=100;w=900")
    assert ";r=0;t=" in response.headers["RateLimit"]
    assert client.post("/v1/auth/verify-email", json={}).status_code == 422
    assert client.post(path, json={}, environ_base={"REMOTE_ADDR": "203.0.113.7"}).status_code == 422
    assert client.options(path).status_code == 200


def test_a_throttled_sign_in_says_when_to_come_back(post):
    for _ in range(10):
        post("login", email=ANN, password=WRONG)
    response = post("login", email=ANN, password=WRONG)
    assert problem(response) == (429, "rate_limited")
    assert 0 < int(response.headers["Retry-After"]) <= 901
