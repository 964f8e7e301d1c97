"""Tokens that are forged, altered, of the wrong kind or in the wrong place: 401, and never a word in a log."""

import json
import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from requests import Response

from tests.http.client import Account, Api, problem
from tests.http.document import Operation, read_operations
from tests.http.tokens import JWT_KEY, KEY_ID, changed, claims_of, encode, seconds_from_now, sign

Forge = Callable[[str], str]
STRANGER = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def get_me(api: Api, token: str) -> Response:
    return api.get("/v1/users/me", token=token)


# --- the signature and the header ------------------------------------------------------------------------------------


def unsigned(algorithm: str) -> Forge:
    return lambda token: f"{encode({'alg': algorithm, 'kid': KEY_ID})}.{token.split('.')[1]}."


def with_header(**header: Any) -> Forge:
    return lambda token: sign(claims_of(token), header=header)


def other_algorithm(name: str) -> Forge:
    digest = f"sha{name.removeprefix('HS')}"
    return lambda token: sign(claims_of(token), header={"alg": name}, digest=digest)


def segments(change: Callable[[list[str]], list[str]]) -> Forge:
    return lambda token: ".".join(change(token.split(".")))


FORGERIES: dict[str, Forge] = {
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "alg nOnE": unsigned("nOnE"),
    "alg empty": unsigned(""),
    "no signature": segments(lambda parts: [*parts[:2], ""]),
    "two segments": segments(lambda parts: parts[:2]),
    "four segments": segments(lambda parts: [*parts, parts[2]]),
    "detached payload": segments(lambda parts: [parts[0], "", parts[2]]),
    "HS512": other_algorithm("HS512"),
    "HS384": other_algorithm("HS384"),
    "another key": lambda token: sign(claims_of(token), key="another key that is also long enough!"),
    "an empty key": lambda token: sign(claims_of(token), key=""),
    "RS256 in the header": with_header(alg="RS256"),
    "no alg": with_header(alg=None),
    "alg a list": with_header(alg=["HS256"]),
    "alg a number": with_header(alg=256),
    "crit": with_header(crit=["x"], x=1),
    "b64 false": with_header(b64=False, crit=["b64"]),
    "no kid": with_header(kid=None),
    "an unknown kid": with_header(kid="other"),
    "kid a path": with_header(kid="../../dev/null"),
    "kid an object": with_header(kid={"a": 1}),
    "kid a number": with_header(kid=1),
    "a JWK in the header": with_header(kid=None, jwk={"kty": "oct", "k": encode(JWT_KEY)}),
    "header not an object": lambda token: f"{encode('[]')}.{token.split('.')[1]}.x",
    "header not JSON": lambda token: f"{encode('x')}.{token.split('.')[1]}.x",
    "header nested deeply": lambda token: f"{encode('[' * 900)}.{token.split('.')[1]}.x",
    "payload not an object": lambda token: sign([1]),
    "payload not JSON": lambda token: sign("x"),
    "payload nested deeply": lambda token: sign("[" * 900),
    "payload null": lambda token: sign("null"),
    "payload with NaN": lambda token: sign(json.dumps(claims_of(token)).replace('"HS256"', "NaN")[:-1] + ', "a": NaN}'),
    "an encrypted token": lambda token: f"{token}.{token.split('.')[1]}.{token.split('.')[2]}",
    "padding": lambda token: f"{token}=",
    "garbage": lambda token: "garbage",
    "dots": lambda token: "..",
    "4 KiB": lambda token: token + "A" * 4096,
    "not ASCII": lambda token: f"{token}\xfc",
    "a quoted token": lambda token: f'"{token}"',
    "a percent-encoded token": lambda token: token.replace(".", "%2E"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=list(FORGERIES))
def test_a_forged_token_is_401(anonymous: Api, user: Account, forge: Forge) -> None:
    body = problem(get_me(anonymous, forge(user.access_token)), 401, "invalid_token")
    garbage = problem(get_me(anonymous, "abc.def.ghi"), 401, "invalid_token")
    assert {**body, "request_id": ""} == {**garbage, "request_id": ""}


def test_our_way_of_signing_makes_good_tokens(anonymous: Api, user: Account) -> None:
    """Without this the refusals here would prove nothing."""
    assert get_me(anonymous, sign(claims_of(user.access_token))).status_code == 200
    assert get_me(anonymous, changed(user.access_token, exp=seconds_from_now(60))).status_code == 200


# --- the claims ------------------------------------------------------------------------------------------------------

CLAIMS = ["iss", "aud", "sub", "sid", "type", "fresh", "iat", "exp", "jti", "role"]
BAD_CLAIMS: list[tuple[str, Any]] = [
    *[(name, None) for name in CLAIMS],
    ("iss", "other"),
    ("iss", ["project"]),
    ("aud", "other"),
    ("aud", ["project-api", "other"]),
    ("type", "refresh"),
    ("type", "foo"),
    ("type", 1),
    ("sub", 1),
    ("sub", "1 OR 1=1"),
    ("sub", ""),
    ("sub", {"a": 1}),
    ("sub", STRANGER),
    ("sub", STRANGER.upper()),
    ("sid", STRANGER),
    ("sid", "null"),
    ("sid", 7),
    ("jti", 7),
    ("jti", "x"),
    ("exp", "soon"),
    ("exp", True),
    ("exp", [1]),
    ("exp", 1e308),
    ("exp", float("inf")),
    ("exp", 10**12),
    ("exp", 10**15),
    ("exp", 10**17),
    ("exp", 2**63 - 1),
    ("exp", 10**30),
    ("exp", 10**400),
    ("iat", "now"),
    ("iat", 1e308),
    ("iat", -1e308),
    ("iat", 2**31),
    ("nbf", 2**31),
    ("more", 1),
    ("role\0", "admin"),
]


@pytest.mark.parametrize(("name", "value"), BAD_CLAIMS)
def test_a_token_of_ours_with_other_claims_is_401(anonymous: Api, user: Account, name: str, value: Any) -> None:
    response = get_me(anonymous, changed(user.access_token, **{name: value}))
    assert response.status_code == 401, response.text
    problem(response, 401, response.json()["code"])


def test_a_float_is_no_time(anonymous: Api, user: Account) -> None:
    token = changed(user.access_token, exp=seconds_from_now(60) + 0.5)
    problem(get_me(anonymous, token), 401, "invalid_token")


@pytest.mark.parametrize("seconds", [-31, -61, -(10**9), -(10**11)])
def test_an_expired_token_is_401(anonymous: Api, user: Account, seconds: int) -> None:
    token = changed(user.access_token, exp=seconds_from_now(seconds))
    problem(get_me(anonymous, token), 401, "token_expired")


def test_the_role_in_a_token_opens_nothing(anonymous: Api, user: Account) -> None:
    token = changed(user.access_token, role="admin")
    problem(anonymous.get("/v1/users", token=token), 403, "forbidden")


def test_another_accounts_session_is_no_session(anonymous: Api, user: Account, admin: Account) -> None:
    for name in ("sub", "sid"):
        token = changed(user.access_token, **{name: claims_of(admin.access_token)[name]})
        problem(get_me(anonymous, token), 401, "session_revoked")


def test_the_tokens_of_an_erased_account_are_401(anonymous: Api, new_user: Callable[[], Account]) -> None:
    gone = new_user()
    assert gone.api.post("/v1/users/me/erase", json={"password": gone.password}).status_code == 204
    problem(gone.api.get("/v1/users/me"), 401, "session_revoked")
    problem(anonymous.post("/v1/auth/refresh", token=gone.refresh_token), 401, "session_revoked")


# --- altered ---------------------------------------------------------------------------------------------------------


def test_no_bit_of_a_token_can_be_changed(anonymous: Api, user: Account) -> None:
    token = user.access_token
    for position, character in enumerate(token):
        for bit in range(8):
            changed_character = chr(ord(character) ^ (1 << bit))
            # The HTTP server itself refuses control characters.
            if changed_character.isprintable() and (position + bit) % 3 == 0:
                altered = f"Bearer {token[:position]}{changed_character}{token[position + 1 :]}"
                response = anonymous.get("/v1/users/me", headers={"Authorization": altered.encode("latin-1")})
                assert response.status_code == 401, (position, bit)


def test_no_segment_has_a_second_spelling(anonymous: Api, user: Account) -> None:
    """Decoders ignore the spare bits of the last character, so there would be four signatures for one token."""
    parts = user.access_token.split(".")
    for number, part in enumerate(parts):
        for last in ALPHABET.replace(part[-1], ""):
            altered = ".".join([*parts[:number], part[:-1] + last, *parts[number + 1 :]])
            assert get_me(anonymous, altered).status_code == 401, (number, last)


def test_the_alphabet_of_plain_base64_is_refused(anonymous: Api, user: Account) -> None:
    token = user.access_token
    while not set(token) & {"-", "_"}:
        token = changed(token, jti=str(uuid4()))
    problem(get_me(anonymous, token.replace("-", "+").replace("_", "/")), 401, "invalid_token")


# --- the wrong kind --------------------------------------------------------------------------------------------------


def test_a_refresh_token_opens_no_operation_but_refresh_and_logout(user: Account, anonymous: Api) -> None:
    for operation in protected_operations(anonymous):
        if "refresh" not in operation.security:
            response = anonymous.request(operation.method, anywhere(operation), token=user.refresh_token)
            problem(response, 401, "invalid_token")


def test_every_protected_operation_wants_a_token(anonymous: Api) -> None:
    for operation in protected_operations(anonymous):
        if not operation.optional:
            problem(anonymous.request(operation.method, anywhere(operation)), 401, "token_required")


def protected_operations(api: Api) -> list[Operation]:
    return [operation for operation in read_operations(api) if operation.security]


def anywhere(operation: Operation) -> str:
    return re.sub(r"\{\w+\}", lambda _: str(uuid4()), operation.path)


def test_an_access_token_does_not_refresh_and_stays_good(anonymous: Api, user: Account) -> None:
    problem(anonymous.post("/v1/auth/refresh", token=user.access_token), 401, "invalid_token")
    assert user.api.get("/v1/users/me").status_code == 200


# --- what is issued --------------------------------------------------------------------------------------------------


def test_every_sign_in_is_a_session_of_its_own(user: Account) -> None:
    body = {"email": user.email, "password": user.password}
    issued = [user.api.post("/v1/auth/login", json=body).json()["data"] for _ in range(5)]
    claims = [claims_of(answer[name]) for answer in issued for name in ("access_token", "refresh_token")]
    assert len({claim["jti"] for claim in claims}) == len(claims)
    assert len({claim["sid"] for claim in claims}) == len(issued)


def test_an_access_token_holds_what_is_documented_and_no_more(user: Account) -> None:
    claims = claims_of(user.access_token)
    assert set(claims) == {"iss", "aud", "sub", "sid", "role", "type", "fresh", "iat", "exp", "jti"}
    assert claims["exp"] - claims["iat"] == 600
    assert user.email not in json.dumps(claims)
