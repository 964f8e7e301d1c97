from unicodedata import normalize
from uuid import uuid4

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.auth import links, service
from project.auth.links import AlreadyVerified, InvalidLink
from project.auth.models import LinkPurpose
from project.errors import Invalid, NotFound
from project.security import Role, SessionRevoked, TokenKind
from project.users import service as users
from project.users.service import EmailTaken
from tests.auth.asking import ANN, claims_for, is_alive, signs_in
from tests.factories import PASSWORD, make_session, make_user

pytestmark = pytest.mark.usefixtures("hasher")

NEW_PASSWORD = "tulip anvil grape lantern"


@pytest.mark.parametrize(
    ("attributes", "mails"),
    [
        (None, []),
        ({}, [("reset_password", ANN)]),
        ({"email_verified": False}, [("reset_password", ANN)]),
        ({"is_active": False}, []),
        ({"email_verified": False, "password": False}, [("invitation", ANN)]),
        ({"email_verified": False, "password": False, "is_active": False}, []),
    ],
    ids=["nobody", "confirmed", "unverified", "deactivated", "invited", "invited and deactivated"],
)
def test_a_link_is_sent_only_to_an_active_account(session, sent, attributes, mails):
    if attributes is not None:
        make_user(email=ANN, **attributes)
    links.forgot_password(email=ANN)
    assert sent() == mails


def test_a_reset_sets_the_password_and_ends_every_session(session, mailed_token):
    user = make_user(email=ANN)
    opened = [make_session(user), make_session(user)]
    strangers = make_session(make_user())
    links.forgot_password(email=ANN)
    links.reset_password(token=mailed_token("reset_password"), password=NEW_PASSWORD)
    assert [is_alive(one) for one in (*opened, strangers)] == [False, False, True]
    assert (signs_in(PASSWORD), signs_in(NEW_PASSWORD)) == (False, True)


def test_asking_for_a_reset_changes_nothing(session, sent):
    opened = make_session(make_user(email=ANN))
    links.forgot_password(email=ANN)
    sent()
    assert is_alive(opened)
    assert signs_in(PASSWORD)


def test_a_reset_is_audited_once_and_its_owner_told(session, sent, mailed_token):
    user = make_user(email=ANN)
    links.forgot_password(email=ANN)
    links.reset_password(token=mailed_token("reset_password"), password=NEW_PASSWORD)
    (event,) = session.scalars(select(AuditEvent)).all()
    assert (event.action, event.actor_id, event.target_id) == ("password_reset", user.id, user.id)
    assert sent() == [("reset_password", ANN), ("password_changed", ANN)]


def test_a_reset_works_once(session, mailed_token):
    make_user(email=ANN)
    links.forgot_password(email=ANN)
    token = mailed_token("reset_password")
    links.reset_password(token=token, password=NEW_PASSWORD)
    with pytest.raises(InvalidLink):
        links.reset_password(token=token, password=PASSWORD)
    assert signs_in(NEW_PASSWORD)


def test_a_reset_proves_the_address(session, mailed_token):
    make_user(email=ANN, email_verified=False)
    links.forgot_password(email=ANN)
    links.reset_password(token=mailed_token("reset_password"), password=NEW_PASSWORD)
    assert users.get_by_email(ANN).email_verified
    assert signs_in(NEW_PASSWORD)


@pytest.mark.parametrize("ask", [links.forgot_password, links.resend_verification])
def test_a_reset_disables_every_other_link(session, outbox, run_jobs, ask):
    make_user(email=ANN, email_verified=False)
    links.forgot_password(email=ANN)
    ask(email=ANN)
    links.resend_verification(email=ANN)
    links.forgot_password(email=ANN)
    run_jobs()
    tokens = [message.context["link"].partition("#token=")[2] for message in outbox]
    links.reset_password(token=tokens.pop(), password=NEW_PASSWORD)
    for token in tokens:
        with pytest.raises(InvalidLink):
            links.reset_password(token=token, password=PASSWORD)
        with pytest.raises(InvalidLink):
            links.verify_email(token=token)


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("tulip anvil", "password_too_short"),
        ("x" * 257, "password_too_long"),
        ("zkqyvxwzkqyvxw", "password_too_common"),
    ],
)
def test_a_bad_password_is_refused_and_the_link_stays_good(session, mailed_token, password, code):
    make_user(email="zkqyvxw@example.com")
    links.forgot_password(email="zkqyvxw@example.com")
    token = mailed_token("reset_password")
    with pytest.raises(Invalid) as caught:
        links.reset_password(token=token, password=password)
    assert [(field.pointer, field.code) for field in caught.value.errors] == [("/password", code)]
    links.reset_password(token=token, password=NEW_PASSWORD)
    assert signs_in(NEW_PASSWORD, "zkqyvxw@example.com")


@pytest.mark.parametrize("template", ["verify_email", "confirm_email"])
def test_a_link_for_something_else_sets_no_password(session, outbox, template):
    user = make_user(email=ANN, email_verified=False)
    links.send_link(user, LinkPurpose(template), to=ANN, password_hash="x", email=ANN)
    with pytest.raises(InvalidLink):
        links.reset_password(token=outbox[0].context["link"].partition("#token=")[2], password=NEW_PASSWORD)
    assert not users.get_by_email(ANN).email_verified


def test_a_deactivated_account_gets_no_password(session, mailed_token):
    user = make_user(email=ANN)
    links.forgot_password(email=ANN)
    token = mailed_token("reset_password")
    users.update_user(user.id, actor_id=None, is_active=False)
    with pytest.raises(InvalidLink):
        links.reset_password(token=token, password=NEW_PASSWORD)
    users.update_user(user.id, actor_id=None, is_active=True)
    assert signs_in(PASSWORD)


def test_who_resets_to_a_composed_password_does_not_sign_in_decomposed(session, mailed_token):
    composed = normalize("NFC", "résumé of my life")
    make_user(email=ANN)
    links.forgot_password(email=ANN)
    links.reset_password(token=mailed_token("reset_password"), password=composed)
    assert (signs_in(composed), signs_in(normalize("NFD", composed))) == (True, False)


def test_one_accounts_link_resets_no_other_account(session, mailed_token):
    make_user(email=ANN)
    make_user(email="ben@example.com")
    links.forgot_password(email=ANN)
    links.reset_password(token=mailed_token("reset_password"), password=NEW_PASSWORD)
    assert signs_in(PASSWORD, "ben@example.com")


def test_an_invitation_makes_an_account_without_a_password(session, sent, audited):
    admin = make_user(role=Role.ADMIN)
    user = links.invite_user(email=ANN, role=Role.STAFF, name="Ann", actor_id=admin.id)
    assert (user.role, user.name, user.email_verified, user.password_hash) == (Role.STAFF, "Ann", False, None)
    assert sent() == [("invitation", ANN)]
    assert audited() == ["user_created"]


def test_the_invited_choose_a_password_and_sign_in(session, mailed_token):
    links.invite_user(email=ANN, role=Role.STAFF, actor_id=uuid4())
    links.reset_password(token=mailed_token("invitation"), password=NEW_PASSWORD)
    user = users.get_by_email(ANN)
    assert (user.email_verified, user.role) == (True, Role.STAFF)
    assert signs_in(NEW_PASSWORD)


def test_a_taken_address_is_not_invited(session, sent, audited):
    make_user(email=ANN)
    with pytest.raises(EmailTaken):
        links.invite_user(email=ANN, role=Role.STAFF, actor_id=uuid4())
    assert (sent(), audited()) == ([], [])


def test_a_second_invitation_replaces_the_first(session, mailed_token, audited):
    user = links.invite_user(email=ANN, role=Role.USER, actor_id=uuid4())
    first = mailed_token("invitation")
    links.invite_again(user.id, actor_id=uuid4())
    second = mailed_token("invitation")
    with pytest.raises(InvalidLink):
        links.reset_password(token=first, password=NEW_PASSWORD)
    links.reset_password(token=second, password=NEW_PASSWORD)
    assert audited() == ["user_created", "user_invited", "password_reset"]


def test_who_has_a_confirmed_account_is_not_invited_again(session, sent, audited):
    with pytest.raises(AlreadyVerified):
        links.invite_again(make_user().id, actor_id=uuid4())
    with pytest.raises(NotFound):
        links.invite_again(uuid4(), actor_id=uuid4())
    assert (sent(), audited()) == ([], [])


@pytest.mark.parametrize("attributes", [{"is_active": False, "email_verified": False}, {"email_verified": True}])
def test_an_invitation_that_is_out_of_date_is_not_mailed(session, outbox, attributes):
    user = make_user(**attributes)
    links.send_invitation(user_id=str(user.id))
    links.send_invitation(user_id=str(uuid4()))
    assert outbox == []


def test_a_session_opened_before_a_reset_is_not_refreshed(session, mailed_token):
    user = make_user(email=ANN)
    opened = make_session(user)
    links.forgot_password(email=ANN)
    links.reset_password(token=mailed_token("reset_password"), password=NEW_PASSWORD)
    with pytest.raises(SessionRevoked):
        service.refresh(claims_for(opened, TokenKind.REFRESH))
