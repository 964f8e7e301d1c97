from datetime import timedelta

import pytest
from sqlalchemy import func, select

from project.audit import AuditEvent
from project.auth import credentials, links, service
from project.auth.models import KnownNetwork, Session
from project.auth.service import InvalidCredentials
from project.database import transaction, utcnow
from project.users import service as users
from tests.auth.asking import ANN
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.usefixtures("hasher")

# What is wrong with the account, when the password that comes is the right one.
REFUSED = {
    "unknown": None,
    "unverified": {"email_verified": False},
    "inactive": {"is_active": False},
    "unverified and inactive": {"email_verified": False, "is_active": False},
    "invited": {"email_verified": False, "password": False},
    "without a password": {"password": False},
}


def count(session, model) -> int:
    return session.scalar(select(func.count()).select_from(model))


@pytest.mark.parametrize("attributes", REFUSED.values(), ids=REFUSED)
def test_an_account_that_may_not_sign_in_is_refused_with_one_verification(session, hasher, attributes):
    if attributes is not None:
        make_user(email=ANN, **attributes)
    with pytest.raises(InvalidCredentials):
        service.login(email=ANN, password=PASSWORD)
    assert (hasher.verified, hasher.hashed) == (1, 0)
    assert count(session, Session) == count(session, KnownNetwork) == count(session, AuditEvent) == 0


@pytest.mark.parametrize("password", ["wrong horse battery staple", "", PASSWORD.upper(), PASSWORD + " "])
def test_a_wrong_password_is_refused_with_one_verification(session, hasher, password):
    make_user(email=ANN)
    with pytest.raises(InvalidCredentials):
        service.login(email=ANN, password=password)
    assert (hasher.verified, hasher.hashed) == (1, 0)
    assert count(session, Session) == 0


def test_an_erased_account_is_refused(session):
    user = make_user(email=ANN)
    users.erase_user(user.id, actor_id=user.id)
    with pytest.raises(InvalidCredentials):
        service.login(email=ANN, password=PASSWORD)


def test_the_right_password_opens_a_session_with_one_verification(session, hasher):
    user = make_user(email=ANN)
    sign_in = service.login(email=ANN, password=PASSWORD)
    assert (hasher.verified, hasher.hashed) == (1, 0)
    assert sign_in.fresh
    assert sign_in.user.id == sign_in.session.user_id == user.id


def test_a_session_lives_90_days_and_its_first_refresh_token_14(session, time_machine):
    make_user(email=ANN)
    now = utcnow().replace(microsecond=987_000)
    time_machine.move_to(now, tick=False)
    opened = service.login(email=ANN, password=PASSWORD).session
    second = now.replace(microsecond=0)
    assert opened.refresh_issued_at == second
    assert opened.refresh_expires_at == second + timedelta(days=14)
    assert opened.expires_at == second + timedelta(days=90)
    assert opened.last_used_at == now


def test_a_sign_in_notes_when_and_from_where(app, in_app, calling_from):
    user = in_app(make_user, email=ANN)
    with calling_from("203.0.113.7", user_agent="Browser/1.0"):
        sign_in = service.login(email=ANN, password=PASSWORD)
    assert (sign_in.session.ip, sign_in.session.user_agent) == ("203.0.113.7", "Browser/1.0")
    found = in_app(users.get_user, user.id)
    assert utcnow() - timedelta(minutes=1) < found.last_login_at <= utcnow()
    assert found.version == user.version + 1, "last_login_at is part of the account that clients see"
    assert found.updated_at == user.updated_at, "though nobody changed it"


def test_a_sign_in_is_audited_once(app, in_app, calling_from, session):
    user = make_user(email=ANN)
    with calling_from("203.0.113.7"):
        sign_in = service.login(email=ANN, password=PASSWORD)
    (event,) = session.scalars(select(AuditEvent)).all()
    assert (event.action, event.actor_id, event.ip) == ("login", user.id, "203.0.113.7")
    assert (event.target_type, event.target_id) == ("session", sign_in.session.id)
    assert event.request_id


def test_every_sign_in_opens_a_session_of_its_own(session):
    make_user(email=ANN)
    sessions = [service.login(email=ANN, password=PASSWORD).session for _ in range(3)]
    assert len({opened.id for opened in sessions}) == len({opened.refresh_jti for opened in sessions}) == 3


def test_a_hash_of_other_parameters_is_made_anew(session, hasher):
    user = make_user(email=ANN, password=False)
    with transaction():
        user.password_hash = type(hasher)(time_cost=2, memory_cost=16, parallelism=1).hash(PASSWORD)
    service.login(email=ANN, password=PASSWORD)
    assert "$m=8,t=1,p=1$" in (users.get_user(user.id).password_hash or "")
    service.login(email=ANN, password=PASSWORD)
    assert (hasher.verified, hasher.hashed) == (2, 1)


def test_the_right_password_of_an_unverified_account_has_its_mail_sent_again(session, outbox, mailed_token):
    user = make_user(email=ANN, email_verified=False)
    with pytest.raises(InvalidCredentials):
        service.login(email=ANN, password=PASSWORD)
    links.verify_email(token=mailed_token("verify_email"))
    assert [message.to for message in outbox] == [ANN]
    assert service.login(email=ANN, password=PASSWORD).user.id == user.id


@pytest.mark.parametrize(
    ("attributes", "password"),
    [
        ({"email_verified": False}, "wrong horse battery staple"),
        ({"email_verified": False, "is_active": False}, PASSWORD),
        ({"email_verified": False, "password": False}, PASSWORD),
        ({}, "wrong horse battery staple"),
    ],
)
def test_nobody_else_gets_mail_at_sign_in(session, outbox, run_jobs, attributes, password):
    make_user(email=ANN, **attributes)
    with pytest.raises(InvalidCredentials):
        service.login(email=ANN, password=password)
    run_jobs()
    assert outbox == []


def test_signing_in_to_an_unverified_account_does_not_fill_a_strangers_mailbox(session, outbox, run_jobs):
    make_user(email=ANN, email_verified=False)
    for _ in range(8):
        with pytest.raises(InvalidCredentials):
            service.login(email=ANN, password=PASSWORD)
    run_jobs()
    assert len(outbox) == 5


def deactivate(user):
    users.update_user(user.id, actor_id=None, is_active=False)


def deactivate_and_activate(user):
    deactivate(user)
    users.update_user(user.id, actor_id=None, is_active=True)


def change_the_password(user):
    with transaction():
        users.get_user(user.id).password_hash = "another"


def erase(user):
    users.erase_user(user.id, actor_id=None)


@pytest.mark.parametrize("change", [deactivate, change_the_password, erase])
def test_a_change_of_the_account_while_its_password_is_verified_wins(session, hasher, in_app, change):
    user = make_user(email=ANN)
    hasher.meanwhile = lambda: in_app(change, user)
    with pytest.raises(InvalidCredentials):
        service.login(email=ANN, password=PASSWORD)
    assert count(session, Session) == 0


def test_a_session_opened_after_the_others_were_ended_is_not_ended_with_them(session, hasher, in_app):
    user = make_user(email=ANN)
    hasher.meanwhile = lambda: in_app(deactivate_and_activate, user)
    sign_in = service.login(email=ANN, password=PASSWORD)
    assert sign_in.session.epoch == users.get_user(user.id).session_epoch == 2


def test_the_first_admin_is_made_with_a_good_password_and_signs_in_at_once(session, audited):
    credentials.create_admin(email=ANN, password=PASSWORD)
    sign_in = service.login(email=ANN, password=PASSWORD)
    assert sign_in.user.role == "admin"
    assert audited() == ["user_created", "login"]
