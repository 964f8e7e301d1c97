from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.auth import service, sessions
from project.auth.models import KnownNetwork, Session
from project.database import transaction, utcnow
from project.errors import NotFound
from project.pagination import PageRequest
from project.security import Claims, Role, SessionRevoked, TokenKind
from project.users import service as users
from tests.auth.asking import claims_for, is_alive, statements_on
from tests.factories import make_session, make_user

NEWEST_FIRST = PageRequest(limit=20, sort="-created_at", bound_to="")


@pytest.fixture
def user(session):
    return make_user(role=Role.STAFF)


def listed(user, *, current: UUID | None = None) -> list[Session]:
    return list(sessions.list_sessions(user_id=user.id, current=current or uuid4(), page=NEWEST_FIRST))


def test_a_principal_is_loaded_with_one_query(session, user):
    opened = make_session(user)
    session.expunge_all()
    with statements_on(session.get_bind()) as statements:
        caller = service.load_principal(claims_for(opened))
    assert len(statements) == 1
    assert (caller.id, caller.role, caller.session_id) == (user.id, Role.STAFF, opened.id)


def test_the_role_of_a_principal_is_the_one_in_the_database(session, user, in_app):
    opened = make_session(user)
    in_app(users.update_user, user.id, actor_id=None, role=Role.USER)
    session.expire_all()
    assert service.load_principal(claims_for(opened)).role is Role.USER


DEAD = {
    "revoked": {"revoked_at": utcnow()},
    "past its end": {"expires_at": utcnow() - timedelta(seconds=1)},
    "of an earlier epoch": {"epoch": 0},
}


@pytest.mark.parametrize("attributes", DEAD.values(), ids=DEAD)
def test_a_dead_session_has_no_principal_and_is_not_listed(user, attributes):
    opened = make_session(user, **attributes)
    assert not is_alive(opened)
    assert listed(user) == []
    for kind in TokenKind:
        with pytest.raises(SessionRevoked):
            service.logout(claims_for(opened, kind))


def test_a_deactivated_account_has_no_principal(user):
    opened = make_session(user)
    with transaction():
        user.is_active = False
    assert not is_alive(opened)


def test_one_accounts_session_is_not_anothers_principal(session, user):
    opened = make_session(user)
    stranger = make_user()
    with pytest.raises(SessionRevoked):
        service.load_principal(Claims(TokenKind.ACCESS, stranger.id, opened.id, uuid4(), utcnow()))


def test_a_list_shows_ones_own_sessions_newest_first_and_marks_the_current(session, user):
    opened = [make_session(user, created_at=utcnow() + timedelta(seconds=second)) for second in range(3)]
    make_session(make_user())
    found = listed(user, current=opened[1].id)
    assert [one.id for one in found] == [opened[2].id, opened[1].id, opened[0].id]
    assert [one.current for one in found] == [False, True, False]


def test_a_session_whose_refresh_token_ran_out_is_not_listed(session, user):
    make_session(user, refresh_expires_at=utcnow() - timedelta(seconds=1))
    assert listed(user) == []


def test_ending_a_session_acts_at_once_and_on_it_alone(session, user, audited):
    one, other = make_session(user), make_session(user)
    sessions.end_session(user_id=user.id, session_id=one.id)
    assert (is_alive(one), is_alive(other)) == (False, True)
    assert audited() == ["session_ended"]


def test_ending_a_session_again_finds_nothing(session, user, audited):
    opened = make_session(user)
    sessions.end_session(user_id=user.id, session_id=opened.id)
    with pytest.raises(NotFound):
        sessions.end_session(user_id=user.id, session_id=opened.id)
    assert audited() == ["session_ended"]


@pytest.mark.parametrize("exists", [True, False])
def test_another_accounts_session_is_as_unknown_as_none(session, user, audited, exists):
    opened = make_session(make_user())
    with pytest.raises(NotFound, match=r"^There is no such session\.$"):
        sessions.end_session(user_id=user.id, session_id=opened.id if exists else uuid4())
    assert is_alive(opened)
    assert audited() == []


@pytest.mark.parametrize("keep", [True, False])
def test_ending_all_sessions_may_keep_the_current_one(session, user, audited, keep):
    current, other, strangers = make_session(user), make_session(user), make_session(make_user())
    sessions.end_sessions(user_id=user.id, keep=current.id if keep else None)
    assert [is_alive(one) for one in (current, other, strangers)] == [keep, False, True]
    assert audited() == ["sessions_ended"]


@pytest.mark.parametrize("kind", TokenKind)
def test_signing_out_ends_the_session_of_either_token(session, user, kind):
    opened, other = make_session(user), make_session(user)
    service.logout(claims_for(opened, kind))
    assert (is_alive(opened), is_alive(other)) == (False, True)
    (entry,) = session.scalars(select(AuditEvent)).all()
    assert (entry.action, entry.actor_id, entry.target_id) == ("logout", user.id, opened.id)


def test_signing_out_twice_is_refused(session, user, audited):
    opened = make_session(user)
    service.logout(claims_for(opened))
    with pytest.raises(SessionRevoked):
        service.logout(claims_for(opened))
    assert audited() == ["logout"]


def test_a_revoked_session_keeps_when_and_why_it_ended(session, user):
    opened = make_session(user)
    service.logout(claims_for(opened))
    sessions.end_sessions(user_id=user.id)
    session.refresh(opened)
    assert opened.revoked_reason == "logout"
    assert opened.revoked_at
    assert utcnow() - timedelta(minutes=1) < opened.revoked_at <= utcnow()


def test_housekeeping_deletes_what_is_past_its_end(session, user):
    with transaction():
        for network, days in (("192.0.2.0/24", 31), ("198.51.100.0/24", 29)):
            last = utcnow() - timedelta(days=days)
            session.add(KnownNetwork(user_id=user.id, network=network, last_login_at=last))
    make_session(user, expires_at=utcnow() - timedelta(seconds=1))
    kept = [make_session(user).id, make_session(user, revoked_at=utcnow()).id]
    sessions.purge()
    session.expunge_all()
    assert set(session.scalars(select(Session.id))) == set(kept)
    assert session.scalars(select(KnownNetwork.network)).all() == ["198.51.100.0/24"]


def test_an_erased_account_leaves_no_trace_of_where_it_signed_in(session, user):
    stranger = make_session(make_user())
    make_session(user, ip="203.0.113.7", user_agent="Browser/1.0")
    with transaction():
        session.add(KnownNetwork(user_id=user.id, network="203.0.113.0/24", last_login_at=utcnow()))
    users.erase_user(user.id, actor_id=user.id)
    assert session.scalars(select(Session.id)).all() == [stranger.id]
    assert session.scalars(select(KnownNetwork.network)).all() == []
