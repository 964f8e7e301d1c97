"""Where a token counts: in one Authorization header, in any case of its scheme, and nowhere else."""

import json

import pytest

from tests.http.client import PROXIED, Account, Api, problem, raw, raw_request
from tests.http.tokens import changed


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer  "])
def test_the_scheme_may_be_written_in_any_case(anonymous: Api, user: Account, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {user.access_token}"}
    assert anonymous.get("/v1/users/me", headers=headers).status_code == 200


NO_TOKENS = ["", "Bearer", "Bearer ", "{0}", "Basic {0}", "JWT {0}", "Bearer {0} x", "Bearer {0},{0}", "Bearer:{0}"]


@pytest.mark.parametrize("value", NO_TOKENS)
def test_another_authorization_is_no_token(base_url: str, user: Account, value: str) -> None:
    header = f"Authorization: {value.format(user.access_token)}"
    answer = raw(base_url, raw_request(base_url, "/v1/users/me", headers=[header]))
    assert (answer.status, json.loads(answer.body)["code"]) == (401, "token_required")


def test_two_authorizations_are_no_token(base_url: str, user: Account) -> None:
    header = f"Authorization: Bearer {user.access_token}"
    for headers in ([header, header], [header, "Authorization: Bearer x"], ["Authorization: Basic eDp4", header]):
        answer = raw(base_url, raw_request(base_url, "/v1/users/me", headers=headers))
        refusal = (answer.status, json.loads(answer.body)["code"])
        assert refusal == (401, "token_required") or (PROXIED and refusal == (400, "bad_request"))


def test_a_token_beyond_the_header_limit_is_431(base_url: str) -> None:
    header = "Authorization: Bearer " + "A" * 10_240
    assert raw(base_url, raw_request(base_url, "/v1/users/me", headers=[header])).status == 431


def test_a_token_counts_nowhere_but_in_its_header(anonymous: Api, user: Account) -> None:
    token = user.access_token
    for place in (
        {"params": {"access_token": token}},
        {"params": {"jwt": token}},
        {"params": {"token": token}},
        {"cookies": {"access_token_cookie": token, "session": token}},
        {"headers": {"Cookie": f"access_token={token}"}},
        {"headers": {"X-Access-Token": token, "X-Authorization": f"Bearer {token}"}},
        {"headers": {"Proxy-Authorization": f"Bearer {token}"}},
        {"data": {"access_token": token}},
        {"json": {"access_token": token}},
    ):
        problem(anonymous.get("/v1/users/me", **place), 401, "token_required")


def test_a_bad_token_on_a_public_operation_is_ignored(anonymous: Api, user: Account) -> None:
    body = {"email": user.email, "password": user.password}
    for token in ("garbage", changed(user.access_token, exp=1)):
        assert anonymous.post("/v1/auth/login", json=body, token=token).status_code == 200
