from datetime import timedelta
from itertools import product
from uuid import UUID

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.auth import service, sessions, tokens
from project.auth.models import Session
from project.auth.service import SignIn, TokenReused
from project.database import db
from project.security import Role, SessionRevoked, TokenExpired
from project.users import service as users
from tests.auth.asking import ANN
from tests.auth.forgery import claims_of
from tests.factories import make_session, make_user


@pytest.fixture
def now(time_machine):
    """Time stands still, at a moment with a fraction, unless a test shifts it."""
    time_machine.move_to("2030-01-31T12:00:00.250Z", tick=False)
    return time_machine


@pytest.fixture
def user(in_app, now):
    return in_app(make_user, email=ANN)


@pytest.fixture
def open_session(in_app):
    """Open a session as login does, and return its tokens."""
    return lambda user: in_app(lambda: tokens.issue(SignIn(make_session(user), user, fresh=True)))


@pytest.fixture
def first(open_session, user):
    return open_session(user)


@pytest.fixture
def refresh(in_app):
    """Exchange a refresh token as a request does."""
    return lambda token: in_app(lambda: tokens.issue(service.refresh(tokens.verify(token))))


@pytest.fixture
def is_signed_in(in_app):
    """Tell whether an access token is good for requests."""

    def check(issued) -> bool:
        try:
            in_app(lambda: service.load_principal(tokens.verify(issued["access_token"])))
        except SessionRevoked:
            return False
        return True

    return check


def sid(issued) -> UUID:
    return UUID(claims_of(issued["access_token"])["sid"])


def test_a_refresh_gives_new_tokens_of_the_same_session(first, refresh, is_signed_in):
    second = refresh(first["refresh_token"])
    assert sid(second) == sid(first)
    assert second["refresh_token"] != first["refresh_token"]
    assert is_signed_in(first)
    assert is_signed_in(second)
    assert claims_of(second["access_token"])["fresh"] is False


def test_the_last_use_of_a_session_is_its_last_refresh(first, refresh, now, in_app):
    opened = in_app(db.session.get, Session, sid(first)).last_used_at
    now.shift(3600)
    refresh(first["refresh_token"])
    assert in_app(db.session.get, Session, sid(first)).last_used_at == opened + timedelta(hours=1)


def test_the_token_just_replaced_gets_the_identical_successor(first, refresh, now, is_signed_in):
    second = refresh(first["refresh_token"])
    now.shift(9.9)
    again = refresh(first["refresh_token"])
    assert again["refresh_token"] == second["refresh_token"]
    assert is_signed_in(again)
    assert refresh(second["refresh_token"])["refresh_token"] != second["refresh_token"]


def test_after_ten_seconds_the_token_just_replaced_ends_the_session(first, refresh, now, is_signed_in):
    second = refresh(first["refresh_token"])
    now.shift(10)
    with pytest.raises(TokenReused):
        refresh(first["refresh_token"])
    assert not is_signed_in(first)
    assert not is_signed_in(second)
    with pytest.raises(SessionRevoked):
        refresh(second["refresh_token"])


def test_asking_again_does_not_lengthen_the_ten_seconds(first, refresh, now):
    refresh(first["refresh_token"])
    now.shift(9)
    refresh(first["refresh_token"])
    now.shift(1)
    with pytest.raises(TokenReused):
        refresh(first["refresh_token"])


def test_once_the_successor_was_used_the_token_before_ends_the_session(first, refresh, is_signed_in):
    second = refresh(first["refresh_token"])
    third = refresh(second["refresh_token"])
    with pytest.raises(TokenReused):
        refresh(first["refresh_token"])
    assert not any(is_signed_in(issued) for issued in (first, second, third))
    with pytest.raises(SessionRevoked):
        refresh(third["refresh_token"])


def test_a_reuse_is_audited_once_and_its_owner_told(first, user, refresh, run_jobs, outbox, in_app, calling_from):
    refresh(refresh(first["refresh_token"])["refresh_token"])
    with calling_from("203.0.113.7"), pytest.raises(TokenReused):
        service.refresh(tokens.verify(first["refresh_token"]))
    with pytest.raises(SessionRevoked):
        refresh(first["refresh_token"])
    (event,) = in_app(lambda: db.session.scalars(select(AuditEvent)).all())
    assert (event.action, event.actor_id, event.ip) == ("token_reused", user.id, "203.0.113.7")
    assert (event.target_type, event.target_id) == ("session", sid(first))
    run_jobs()
    assert [(message.template, message.to) for message in outbox] == [("sessions_ended", ANN)]


def test_a_reuse_ends_no_other_session(first, open_session, user, in_app, refresh, is_signed_in):
    other, stranger = open_session(user), open_session(in_app(make_user))
    refresh(refresh(first["refresh_token"])["refresh_token"])
    with pytest.raises(TokenReused):
        refresh(first["refresh_token"])
    assert is_signed_in(other)
    assert is_signed_in(stranger)
    assert refresh(other["refresh_token"])


def test_every_order_of_an_owner_and_a_thief_follows_the_rule(open_session, user, refresh, now):
    """The thief has a copy of the first token; pauses are longer than the grace."""
    for steps in product(("owner", "thief", "pause"), repeat=4):
        issued = [open_session(user)["refresh_token"]]
        holds = {"owner": 0, "thief": 0}
        alive, age = True, 0
        for step in steps:
            if step == "pause":
                now.shift(11)
                age += 11
                continue
            presented, newest = holds[step], len(issued) - 1
            if not alive:
                with pytest.raises(SessionRevoked):
                    refresh(issued[presented])
            elif presented == newest:
                issued.append(refresh(issued[presented])["refresh_token"])
                holds[step], age = newest + 1, 0
            elif presented == newest - 1 and age < 10:
                assert refresh(issued[presented])["refresh_token"] == issued[newest]
                holds[step] = newest
            else:
                alive = False
                with pytest.raises(TokenReused):
                    refresh(issued[presented])


def test_a_refresh_token_is_good_for_14_days(first, refresh, now):
    now.shift(timedelta(days=14) - timedelta(seconds=1))
    second = refresh(first["refresh_token"])
    now.shift(timedelta(days=14, seconds=1))
    with pytest.raises(TokenExpired):
        refresh(second["refresh_token"])


def test_a_chain_of_daily_refreshes_ends_after_90_days(first, refresh, now, is_signed_in):
    issued = first
    for _ in range(89):
        now.shift(timedelta(days=1))
        issued = refresh(issued["refresh_token"])
    now.shift(timedelta(days=1) - timedelta(seconds=1))
    issued = refresh(issued["refresh_token"])
    assert is_signed_in(issued)
    now.shift(1)
    assert not is_signed_in(issued), "an access token does not outlive its session"
    with pytest.raises(TokenExpired):
        refresh(issued["refresh_token"])


def test_after_signing_out_there_is_no_grace(first, refresh, in_app, audited, run_jobs, outbox):
    second = refresh(first["refresh_token"])
    in_app(lambda: service.logout(tokens.verify(second["access_token"])))
    for issued in (first, second):
        with pytest.raises(SessionRevoked):
            refresh(issued["refresh_token"])
    run_jobs()
    assert (audited(), outbox) == (["logout"], [])


ENDINGS = {
    "ended": lambda user, issued: sessions.end_session(user_id=user.id, session_id=sid(issued)),
    "all ended": lambda user, issued: sessions.end_sessions(user_id=user.id),
    "all ended by an admin": lambda user, issued: users.end_sessions(user.id, actor_id=None),
    "deactivated": lambda user, issued: users.update_user(user.id, actor_id=None, is_active=False),
    "erased": lambda user, issued: users.erase_user(user.id, actor_id=None),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_a_session_that_was_ended_is_not_refreshed(first, user, refresh, in_app, is_signed_in, end):
    second = refresh(first["refresh_token"])
    in_app(end, user, first)
    assert not is_signed_in(second)
    for issued in (second, first):
        with pytest.raises(SessionRevoked):
            refresh(issued["refresh_token"])


def test_an_account_that_was_active_again_keeps_its_sessions_ended(first, user, refresh, in_app):
    for is_active in (False, True):
        in_app(users.update_user, user.id, actor_id=None, is_active=is_active)
    with pytest.raises(SessionRevoked):
        refresh(first["refresh_token"])


def test_the_new_access_token_names_the_role_of_now(first, user, refresh, in_app):
    in_app(users.update_user, user.id, actor_id=None, role=Role.STAFF)
    issued = refresh(first["refresh_token"])
    assert (claims_of(issued["access_token"])["role"], issued["user"].role) == ("staff", Role.STAFF)


def test_a_session_belongs_to_its_account(first, in_app, refresh):
    claims = in_app(tokens.verify, first["refresh_token"])
    stranger = type(claims)(**{**vars(claims), "user_id": in_app(make_user).id})
    with pytest.raises(SessionRevoked):
        in_app(service.refresh, stranger)
    assert refresh(first["refresh_token"]), "and is as it was"


def test_a_token_of_no_session_is_refused(first, in_app):
    claims = in_app(tokens.verify, first["refresh_token"])
    with pytest.raises(SessionRevoked):
        in_app(service.refresh, type(claims)(**{**vars(claims), "session_id": claims.user_id}))
