import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from project import create_app
from project.auth import tokens
from project.auth.models import Session
from project.auth.service import SignIn
from project.database import uuid7
from project.security import InvalidToken, Role, TokenExpired, TokenKind
from project.users.models import User
from tests.auth.forgery import FORGERIES, HEADER, KEY, claims_of, decode, encode, sign
from tests.conftest import ENV

NEXT_KEY = "the signing key that comes next and is long"
NOW = datetime(2030, 1, 31, 12, 0, 0, 900_000, tzinfo=UTC)


@pytest.fixture(scope="module")
def make_app(tmp_path_factory):
    """Build an application with these signing keys; verifying tokens needs no database."""

    def make(keys: str):
        return create_app({**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("data")), "JWT_SECRET_KEYS": keys})

    return make


@pytest.fixture(scope="module")
def app(make_app):
    return make_app(f"test:{KEY}")


@pytest.fixture(autouse=True)
def context(app):
    with app.app_context():
        yield


def make_sign_in(*, fresh: bool = True) -> SignIn:
    """A sign-in that is in no database."""
    issued_at = datetime.now(UTC).replace(microsecond=0)
    user = User(id=uuid7(), role=Role.STAFF)
    times = {"refresh_issued_at": issued_at, "refresh_expires_at": issued_at + timedelta(days=14)}
    return SignIn(Session(id=uuid7(), user_id=user.id, refresh_jti=uuid7(), **times), user, fresh)


@pytest.fixture
def access_token():
    return tokens.issue(make_sign_in())["access_token"]


def is_refused(token: str) -> bool:
    try:
        tokens.verify(token)
    except InvalidToken:
        return True
    return False


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_token_is_refused(access_token, forge):
    with pytest.raises(InvalidToken):
        tokens.verify(forge(claims_of(access_token)))


def test_a_token_that_the_forger_signs_without_a_change_is_good(access_token):
    assert tokens.verify(sign(claims_of(access_token))) == tokens.verify(access_token)


def test_every_bit_of_a_token_counts(access_token):
    changed = (
        access_token[:place] + chr(ord(access_token[place]) ^ 1 << bit) + access_token[place + 1 :]
        for place in range(len(access_token))
        for bit in range(8)
    )
    assert [token for token in changed if not is_refused(token)] == []


@pytest.mark.parametrize("extra", ["=", "==", "\n", " ", "\t", "\0", "ä", "\u2028", "🦉", "\ud800", "."])
def test_nothing_may_be_added_to_a_token(access_token, extra):
    places = [0, len(access_token)] + [place for place, char in enumerate(access_token) if char == "."]
    assert all(is_refused(access_token[:place] + extra + access_token[place:]) for place in places)


@examples(max_examples=150, deadline=None)
@given(st.text() | st.lists(st.binary(max_size=60).map(encode), max_size=5).map(".".join))
def test_no_text_is_anything_but_refused(app, text):
    with app.app_context(), pytest.raises(InvalidToken):
        tokens.verify(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@examples(max_examples=150, deadline=None)
@given(
    claim=st.sampled_from(["iss", "aud", "sub", "sid", "role", "type", "fresh", "iat", "exp", "jti", "nbf"]),
    member=st.sampled_from(["alg", "kid", "crit", "b64", "typ"]),
    value=json_values,
)
def test_whatever_is_signed_is_verified_or_refused(app, claim, member, value):
    with app.app_context():
        good = claims_of(tokens.issue(make_sign_in())["access_token"])
        for token in (sign({**good, claim: value}), sign(good, {**HEADER, member: value})):
            with suppress(InvalidToken, TokenExpired):
                tokens.verify(token)


def test_an_access_token_has_exactly_the_documented_claims(time_machine):
    time_machine.move_to(NOW, tick=False)
    sign_in = make_sign_in()
    claims = claims_of(tokens.issue(sign_in)["access_token"])
    assert UUID(claims.pop("jti")).version == 7
    assert claims == {
        "iss": "project",
        "aud": "project-api",
        "sub": str(sign_in.user.id),
        "sid": str(sign_in.session.id),
        "role": "staff",
        "type": "access",
        "fresh": True,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 600,
    }


def test_a_refresh_token_has_the_claims_that_its_session_keeps(time_machine):
    time_machine.move_to(NOW, tick=False)
    sign_in = make_sign_in()
    assert claims_of(tokens.issue(sign_in)["refresh_token"]) == {
        "iss": "project",
        "aud": "project-api",
        "sub": str(sign_in.user.id),
        "sid": str(sign_in.session.id),
        "type": "refresh",
        "fresh": False,
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 14 * 24 * 3600,
        "jti": str(sign_in.session.refresh_jti),
    }


def test_the_header_names_the_algorithm_and_the_key(access_token):
    assert decode(access_token.partition(".")[0]) == {"alg": "HS256", "kid": "test", "typ": "JWT"}


def test_the_same_session_gives_the_identical_refresh_token_at_any_time(time_machine):
    time_machine.move_to(NOW, tick=False)
    sign_in = make_sign_in()
    first = tokens.issue(sign_in)
    time_machine.shift(5)
    second = tokens.issue(sign_in)
    assert first["refresh_token"] == second["refresh_token"]
    assert first["access_token"] != second["access_token"]


def test_two_access_tokens_of_one_moment_differ(time_machine):
    time_machine.move_to(NOW, tick=False)
    sign_in = make_sign_in()
    assert tokens.issue(sign_in)["access_token"] != tokens.issue(sign_in)["access_token"]


def test_only_a_sign_in_with_a_password_is_fresh():
    assert claims_of(tokens.issue(make_sign_in(fresh=False))["access_token"])["fresh"] is False


@pytest.mark.parametrize("kind", TokenKind)
def test_verification_returns_what_was_issued(kind):
    sign_in = make_sign_in()
    claims = tokens.verify(tokens.issue(sign_in)[f"{kind}_token"])
    assert (claims.kind, claims.user_id, claims.session_id) == (kind, sign_in.user.id, sign_in.session.id)
    assert (claims.jti == sign_in.session.refresh_jti) is (kind is TokenKind.REFRESH)


def test_an_access_token_lives_for_10_minutes(time_machine):
    time_machine.move_to(NOW, tick=False)
    issued = tokens.issue(make_sign_in())
    assert issued["expires_in"] == 600
    time_machine.shift(599)
    tokens.verify(issued["access_token"])
    time_machine.shift(31)  # with the leeway that clocks may get
    with pytest.raises(TokenExpired):
        tokens.verify(issued["access_token"])


def test_a_forged_token_is_not_told_that_its_time_is_over(access_token):
    past = {**claims_of(access_token), "exp": 1_700_000_000, "iat": 1_700_000_000}
    with pytest.raises(TokenExpired):
        tokens.verify(sign(past))
    with pytest.raises(InvalidToken):
        tokens.verify(sign(past, key="another signing key that is long enough"))


def test_a_new_first_key_signs_and_the_old_one_still_verifies(make_app, access_token):
    with make_app(f"next:{NEXT_KEY},test:{KEY}").app_context():
        tokens.verify(access_token)
        signed = tokens.issue(make_sign_in())["access_token"]
    assert decode(signed.partition(".")[0])["kid"] == "next"
    with make_app(f"next:{NEXT_KEY}").app_context():
        tokens.verify(signed)


def test_a_key_that_is_gone_verifies_nothing_any_more(make_app, access_token):
    with make_app(f"next:{NEXT_KEY}").app_context():
        assert is_refused(access_token)


def test_a_key_verifies_only_under_its_own_name(make_app, access_token):
    with make_app(f"next:{NEXT_KEY},test:{KEY}").app_context():
        assert is_refused(sign(claims_of(access_token), {**HEADER, "kid": "next"}))


def test_tokens_are_short_enough_for_a_header(access_token):
    assert len(access_token) < tokens.MAX_TOKEN_LENGTH / 2
    padded = {**claims_of(access_token), "role": "x" * tokens.MAX_TOKEN_LENGTH}
    assert is_refused(sign(padded))
    assert json.loads(json.dumps(padded)), "it is the length that is refused"


# --- what was verified before -----------------------------------------------------------------------------------------


@pytest.fixture
def known():
    """Tokens that a process remembers."""
    return tokens.VerifiedTokens()


def test_a_token_that_is_known_is_over_at_its_time(known, time_machine):
    time_machine.move_to(NOW, tick=False)
    token = tokens.issue(make_sign_in())["access_token"]
    assert known.verify(token) is known.verify(token)
    time_machine.shift(timedelta(minutes=10))
    with pytest.raises(TokenExpired):
        known.verify(token)


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_of_a_token_that_is_known_is_refused_each_time(known, access_token, forge):
    known.verify(access_token)
    for _ in range(2):
        with pytest.raises(InvalidToken):
            known.verify(forge(claims_of(access_token)))


def test_only_good_tokens_take_room_and_the_oldest_makes_it(known, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_VERIFIED", 2)
    first, second, third = (tokens.issue(make_sign_in())["access_token"] for _ in range(3))
    claims = known.verify(first)
    with suppress(InvalidToken):
        known.verify("forged")
    known.verify(second)
    assert known.verify(first) is claims
    known.verify(third)
    assert known.verify(first) is not claims
    assert known.verify(first) == claims


def test_tokens_are_not_kept_themselves(known, access_token):
    known.verify(access_token)
    assert access_token not in repr(vars(known))


def test_what_one_application_knows_another_with_other_keys_does_not(make_app, access_token, app):
    app.extensions["authenticator"].verify_token(access_token)
    other = make_app(f"next:{NEXT_KEY}")
    with other.app_context(), pytest.raises(InvalidToken):
        other.extensions["authenticator"].verify_token(access_token)
