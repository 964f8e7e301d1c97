from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from project.database import utcnow
from tests.auth.asking import ANN
from tests.auth.forgery import claims_of
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.usefixtures("hasher")

SESSIONS = "/v1/auth/sessions"
NEW_PASSWORD = "tulip anvil grape lantern"
WRONG = "wrong horse battery staple"


@pytest.fixture
def post(client):
    """Post JSON to an operation of auth as somebody."""
    return lambda operation, headers, **body: client.post(f"/v1/auth/{operation}", json=body, headers=headers)


def problem(response) -> tuple[int, str]:
    assert response.content_type == "application/problem+json"
    return response.status_code, response.json["code"]


def fields(response) -> list[tuple[str, str]]:
    """The fields that a 422 refuses, and why."""
    assert problem(response) == (422, "validation_error")
    return [(field["pointer"], field["code"]) for field in response.json["errors"]]


def sid(caller) -> str:
    found: str = claims_of(caller.access_token)["sid"]
    return found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "refresh"),
        ("POST", "logout"),
        ("GET", "sessions"),
        ("DELETE", "sessions"),
        ("DELETE", "sessions/00000000-0000-7000-8000-000000000000"),
        ("POST", "change-password"),
        ("POST", "change-email"),
    ],
)
def test_who_is_not_signed_in_may_not(client, as_user, method, path):
    response = client.open(f"/v1/auth/{path}", method=method)
    assert problem(response) == (401, "token_required")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api", error="token_required"'
    signed_out = as_user()
    client.post("/v1/auth/logout", headers=signed_out)
    headers = signed_out.refreshing if path == "refresh" else signed_out
    assert problem(client.open(f"/v1/auth/{path}", method=method, headers=headers)) == (401, "session_revoked")


def test_a_refresh_is_answered_like_a_sign_in(client, as_user):
    caller = as_user(email=ANN)
    response = client.post("/v1/auth/refresh", headers=caller.refreshing)
    data = response.json["data"]
    assert (response.status_code, set(response.json)) == (200, {"data"})
    assert set(data) == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (data["token_type"], data["expires_in"], data["user"]["email"]) == ("Bearer", 600, ANN)
    assert response.headers["Cache-Control"] == "no-store"
    assert client.get(SESSIONS, headers={"Authorization": f"Bearer {data['access_token']}"}).status_code == 200


def test_a_refresh_takes_no_notice_of_a_body(client, as_user):
    response = client.post("/v1/auth/refresh", headers=as_user().refreshing, json={"refresh_token": "x"})
    assert response.status_code == 200


def test_a_reused_token_ends_everything_of_its_session(client, as_user, time_machine):
    time_machine.move_to(utcnow(), tick=False)
    caller = as_user()
    second = client.post("/v1/auth/refresh", headers=caller.refreshing).json["data"]
    time_machine.shift(10)
    response = client.post("/v1/auth/refresh", headers=caller.refreshing)
    assert problem(response) == (401, "token_reused")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api", error="token_reused"'
    for token in (caller.access_token, second["access_token"]):
        response = client.get(SESSIONS, headers={"Authorization": f"Bearer {token}"})
        assert problem(response) == (401, "session_revoked")
    for token in (caller.refresh_token, second["refresh_token"]):
        response = client.post("/v1/auth/refresh", headers={"Authorization": f"Bearer {token}"})
        assert problem(response) == (401, "session_revoked")


@pytest.mark.parametrize("kind", ["access", "refresh"])
def test_signing_out_acts_on_the_next_request(client, as_user, kind):
    caller = as_user()
    headers = caller if kind == "access" else caller.refreshing
    response = client.post("/v1/auth/logout", headers=headers)
    assert (response.status_code, response.data) == (204, b"")
    assert problem(client.get(SESSIONS, headers=caller)) == (401, "session_revoked")
    assert problem(client.post("/v1/auth/refresh", headers=caller.refreshing)) == (401, "session_revoked")
    assert problem(client.post("/v1/auth/logout", headers=headers)) == (401, "session_revoked")


def test_the_refresh_token_signs_out_when_the_access_token_has_expired(client, as_user, time_machine):
    time_machine.move_to(utcnow(), tick=False)
    caller = as_user()
    time_machine.shift(3600)
    assert problem(client.post("/v1/auth/logout", headers=caller)) == (401, "token_expired")
    assert client.post("/v1/auth/logout", headers=caller.refreshing).status_code == 204


def test_sessions_are_listed_with_where_they_come_from(client, in_app):
    in_app(make_user, email=ANN)
    body = {"email": ANN, "password": PASSWORD}
    signed_in = client.post(
        "/v1/auth/login",
        json=body,
        headers={"User-Agent": "Browser/1.0"},
        environ_base={"REMOTE_ADDR": "203.0.113.7"},
    ).json["data"]
    response = client.get(SESSIONS, headers={"Authorization": f"Bearer {signed_in['access_token']}"})
    (session,) = response.json["data"]
    assert set(session) == {"id", "created_at", "last_used_at", "ip", "user_agent", "current"}
    assert session["id"] == claims_of(signed_in["access_token"])["sid"]
    assert (session["ip"], session["user_agent"], session["current"]) == ("203.0.113.7", "Browser/1.0", True)
    assert session["created_at"].endswith("Z")
    assert response.json["meta"] == {"limit": 20, "next_cursor": None}
    assert response.headers["Cache-Control"] == "no-store"


def test_sessions_are_listed_page_by_page_and_only_ones_own(client, as_user, sign_in):
    caller = as_user()
    mine = [sid(caller), *(sid(sign_in(caller.user)) for _ in range(2))]
    as_user()
    found, query = [], {"limit": 2, "include_total": "true"}
    while query:
        page = client.get(SESSIONS, headers=caller, query_string=query).json
        found += [(session["id"], session["current"]) for session in page["data"]]
        assert page["meta"]["total"] == 3
        cursor = page["meta"]["next_cursor"]
        query = {**query, "cursor": cursor} if cursor else {}
    assert found == [(mine[2], False), (mine[1], False), (mine[0], True)]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "sort=ip", "user_id=1", "limit=1&limit=2"])
def test_a_list_takes_only_what_is_documented(client, as_user, query):
    assert problem(client.get(f"{SESSIONS}?{query}", headers=as_user())) == (422, "validation_error")


def test_a_session_is_ended_from_another_one(client, as_user, sign_in):
    caller = as_user()
    other = sign_in(caller.user)
    response = client.delete(f"{SESSIONS}/{sid(other)}", headers=caller)
    assert (response.status_code, response.data) == (204, b"")
    assert problem(client.get(SESSIONS, headers=other)) == (401, "session_revoked")
    assert [session["id"] for session in client.get(SESSIONS, headers=caller).json["data"]] == [sid(caller)]
    assert problem(client.delete(f"{SESSIONS}/{sid(other)}", headers=caller)) == (404, "not_found")


def test_another_users_session_answers_like_none(client, as_user, as_admin):
    caller = as_user()
    for path in (f"{SESSIONS}/{sid(caller)}", f"{SESSIONS}/{uuid4()}"):
        response = client.delete(path, headers=as_admin)
        assert problem(response) == (404, "not_found")
        assert response.json["detail"] == "There is no such session."
    assert client.get(SESSIONS, headers=caller).status_code == 200


@pytest.mark.parametrize("name", ["1", "0", "-1", "{}", "%7B{}%7D", "urn:uuid:{}", "{} OR 1=1", "../{}"])
def test_what_is_no_id_is_no_session(client, as_user, sign_in, name):
    caller = as_user()
    other = sign_in(caller.user)
    text = name.format(sid(other).upper() if name == "{}" else sid(other))
    assert problem(client.delete(f"{SESSIONS}/{text}", headers=caller)) == (404, "not_found")
    assert client.get(SESSIONS, headers=other).status_code == 200


@pytest.mark.parametrize(("query", "stays"), [("", False), ("?others=false", False), ("?others=true", True)])
def test_all_sessions_are_ended_or_all_but_this_one(client, as_user, sign_in, query, stays):
    caller, stranger = as_user(), as_user()
    other = sign_in(caller.user)
    response = client.delete(SESSIONS + query, headers=caller)
    assert (response.status_code, response.data) == (204, b"")
    assert client.get(SESSIONS, headers=caller).status_code == (200 if stays else 401)
    assert problem(client.get(SESSIONS, headers=other)) == (401, "session_revoked")
    assert problem(client.post("/v1/auth/refresh", headers=other.refreshing)) == (401, "session_revoked")
    assert client.get(SESSIONS, headers=stranger).status_code == 200


@pytest.mark.parametrize("query", ["others=yes", "others=1", "others=", "others=true&others=true", "other=true"])
def test_it_is_never_guessed_which_sessions_to_end(client, as_user, query):
    caller = as_user()
    assert problem(client.delete(f"{SESSIONS}?{query}", headers=caller)) == (422, "validation_error")
    assert client.get(SESSIONS, headers=caller).status_code == 200


def test_a_changed_password_is_answered_with_nothing(post, client, as_user, sign_in):
    caller = as_user()
    other = sign_in(caller.user)
    response = post("change-password", caller, current_password=PASSWORD, new_password=NEW_PASSWORD)
    assert (response.status_code, response.data) == (204, b"")
    assert client.get(SESSIONS, headers=caller).status_code == 200
    assert problem(client.get(SESSIONS, headers=other)) == (401, "session_revoked")


def test_a_password_is_changed_only_with_the_current_one(post, as_user):
    caller = as_user()
    assert fields(post("change-password", caller, new_password=NEW_PASSWORD)) == [("/current_password", "required")]
    response = post("change-password", caller, current_password=WRONG, new_password=NEW_PASSWORD)
    assert fields(response) == [("/current_password", "invalid_credentials")]
    assert WRONG not in response.text
    assert NEW_PASSWORD not in response.text
    response = post("change-password", caller, current_password=PASSWORD, new_password="projectproject1")
    assert fields(response) == [("/new_password", "password_too_common")]
    assert "projectproject1" not in response.text


def test_wrong_passwords_are_throttled_for_their_session_alone(post, as_user, sign_in):
    caller = as_user()
    for _ in range(5):
        assert fields(post("change-email", caller, new_email=ANN, password=WRONG)) == [
            ("/password", "invalid_credentials")
        ]
    response = post("change-password", caller, current_password=PASSWORD, new_password=NEW_PASSWORD)
    assert problem(response) == (429, "rate_limited")
    assert 0 < int(response.headers["Retry-After"]) <= 601
    other = sign_in(caller.user)
    assert post("change-email", other, new_email=ANN, password=PASSWORD).status_code == 202


@pytest.mark.parametrize("taken", [True, False])
def test_a_change_of_address_answers_the_same_for_a_taken_one(post, in_app, as_user, taken):
    if taken:
        in_app(make_user, email=ANN)
    response = post("change-email", as_user(), new_email=ANN, password=PASSWORD)
    assert (response.status_code, response.json) == (202, {"data": {"status": "accepted"}})


def test_a_confirmed_address_is_answered_with_nothing(post, client, as_user, mailed_token):
    caller = as_user()
    post("change-email", caller, new_email=ANN, password=PASSWORD)
    response = client.post("/v1/auth/confirm-email", json={"token": mailed_token("confirm_email")})
    assert (response.status_code, response.data) == (204, b"")
    assert client.get("/v1/users/me", headers=caller).json["data"]["email"] == ANN


def test_one_users_requests_do_not_spend_anothers(client, as_user):
    caller, other = as_user(), as_user()
    path = f"{SESSIONS}/{uuid4()}"
    assert {client.delete(path, headers=caller).status_code for _ in range(120)} == {404}
    assert problem(client.delete(path, headers=caller)) == (429, "rate_limited")
    assert client.delete(path, headers=other).status_code == 404
    assert client.get(SESSIONS, headers=caller).status_code == 200, "reading has a limit of its own"


def test_ids_of_sessions_and_tokens_are_never_the_same(as_user, sign_in, client):
    caller = as_user()
    tokens = [caller.access_token, caller.refresh_token]
    for _ in range(3):
        again = sign_in(caller.user)
        tokens += [again.access_token, again.refresh_token]
    assert len({claims_of(token)["jti"] for token in tokens}) == len(tokens) == 8
    assert len({UUID(claims_of(token)["sid"]) for token in tokens}) == 4
    assert {claims_of(token)["exp"] - claims_of(token)["iat"] for token in tokens} == {
        600,
        int(timedelta(days=14).total_seconds()),
    }
