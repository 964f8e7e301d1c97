import logging
import re
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.auth.forgery import FORGERIES, claims_of

SESSIONS = "/v1/auth/sessions"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refusal(response) -> str:
    """The code of a 401, which always has its challenge."""
    assert response.status_code == 401
    assert response.content_type == "application/problem+json"
    code: str = response.json["code"]
    assert response.headers["WWW-Authenticate"] == f'Bearer realm="api", error="{code}"'
    return code


def operations(app, *kinds: str, optional: bool = True) -> list[tuple[str, str]]:
    """The method and a path of each documented operation that takes a token of one of exactly these kinds.

    `optional` False leaves out those that can do without one.
    """
    return [
        (method.upper(), re.sub(r"\{\w+\}", str(uuid4()), path))
        for path, item in app.extensions["openapi"]["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
        and {kind for one in operation["security"] for kind in one} == set(kinds)
        and (optional or {} not in operation["security"])
    ]


def test_every_guarded_operation_asks_for_a_token(app, client):
    kinds = (("access",), ("refresh",), ("access", "refresh"))
    guarded = [operation for some in kinds for operation in operations(app, *some, optional=False)]
    assert len(guarded) > 15
    assert {refusal(client.open(path, method=method)) for method, path in guarded} == {"token_required"}


def test_a_refresh_token_is_good_for_no_other_operation(app, client, as_admin):
    for method, path in operations(app, "access"):
        assert refusal(client.open(path, method=method, headers=as_admin.refreshing)) == "invalid_token", path
    assert client.get(SESSIONS, headers=as_admin).status_code == 200


def test_an_access_token_does_not_refresh(app, client, as_user):
    caller = as_user()
    (only_refresh,) = operations(app, "refresh")
    assert only_refresh == ("POST", "/v1/auth/refresh")
    assert refusal(client.post("/v1/auth/refresh", headers=caller)) == "invalid_token"
    assert client.get(SESSIONS, headers=caller).status_code == 200, "and its session stays"


def test_no_forged_token_is_let_in_or_told_why(client, as_user):
    claims = claims_of(as_user().access_token)
    garbage = client.get(SESSIONS, headers=bearer("garbage")).json
    for name, forge in FORGERIES.items():
        response = client.get(SESSIONS, headers=bearer(forge(claims)))
        assert refusal(response) == "invalid_token", name
        assert {**response.json, "request_id": garbage["request_id"]} == garbage, name


def test_a_forged_token_does_not_refresh_or_sign_out(client, as_user):
    caller = as_user()
    forged = FORGERIES["another key"](claims_of(caller.refresh_token))
    for path in ("/v1/auth/refresh", "/v1/auth/logout"):
        assert refusal(client.post(path, headers=bearer(forged))) == "invalid_token"
    assert client.post("/v1/auth/refresh", headers=caller.refreshing).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR ", "Bearer    ", " Bearer "])
def test_the_scheme_may_be_written_in_any_case(client, as_user, scheme):
    headers = {"Authorization": scheme + as_user().access_token}
    assert client.get(SESSIONS, headers=headers).status_code == 200


OTHER_FORMS = """
Bearer
Basic {token}
Basic YW5uOnNlY3JldA==
Token {token}
Digest token={token}
{token}
Bearer:{token}
Bearer{token}
Bearer\t{token}
Bearer {token} {token}
Bearer {token},
Bearer {token}, Bearer x
Bearer x, Bearer {token}
Bearer, {token}
Bearer Bearer {token}
"""


@pytest.mark.parametrize("value", OTHER_FORMS.split("\n"))
def test_another_form_of_the_header_is_no_token(client, as_user, value):
    headers = {"Authorization": value.format(token=as_user().access_token)}
    assert refusal(client.get(SESSIONS, headers=headers)) == "token_required"


@pytest.mark.parametrize("value", ['"{token}"', "{token};", "ä{token}", "{token}\x7f", "<{token}>"])
def test_something_around_a_token_spoils_it(client, as_user, value):
    token = value.format(token=as_user().access_token)
    assert refusal(client.get(SESSIONS, headers=bearer(token))) == "invalid_token"


def test_two_authorization_headers_are_refused(client, as_user):
    headers = [("Authorization", f"Bearer {as_user().access_token}")] * 2
    assert refusal(client.get(SESSIONS, headers=headers)) == "token_required"


@pytest.mark.parametrize("name", ["access_token", "jwt", "token", "access_token_cookie"])
def test_a_token_elsewhere_than_in_the_header_is_none_and_is_not_logged(client, as_user, caplog, name):
    token = as_user().access_token
    client.set_cookie(name, token)
    with caplog.at_level(logging.DEBUG):
        for response in (
            client.get(SESSIONS, query_string={name: token}),
            client.delete(SESSIONS, data={name: token}),
            client.delete(SESSIONS, json={name: token}),
            client.get(SESSIONS, headers={"X-Access-Token": token, "Cookie": f"{name}={token}"}),
        ):
            assert refusal(response) == "token_required"
    assert caplog.records
    assert not any(token in str(record.__dict__) for record in caplog.records)


def test_an_expired_token_is_told_so(client, as_user, time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    caller = as_user()
    time_machine.shift(661)
    assert refusal(client.get(SESSIONS, headers=caller)) == "token_expired"
    time_machine.shift(14 * 24 * 3600)
    assert refusal(client.post("/v1/auth/refresh", headers=caller.refreshing)) == "token_expired"


@pytest.mark.parametrize("value", ["Bearer garbage", "Basic x", "Bearer", "Bearer a b"])
def test_a_bad_token_on_a_public_operation_is_ignored(client, value):
    for name in ("register", "login", "forgot-password", "resend-verification", "verify-email", "reset-password"):
        response = client.post(f"/v1/auth/{name}", json={}, headers={"Authorization": value})
        assert response.status_code == 422, name


@examples(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0")))
def test_whatever_the_header_says_the_answer_is_401(client, text):
    for value in (text, f"Bearer {text}"):
        response = client.get(SESSIONS, headers={"Authorization": value})
        assert refusal(response) in {"token_required", "invalid_token"}
