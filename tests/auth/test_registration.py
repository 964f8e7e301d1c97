from unicodedata import normalize

import pytest
from sqlalchemy import select

from project.auth import links
from project.auth.links import InvalidLink
from project.auth.models import Link, LinkPurpose
from project.errors import Invalid
from project.security import Role
from project.users import service as users
from tests.auth.asking import ANN, signs_in
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.usefixtures("hasher")

OTHER_PASSWORD = "tulip anvil grape lantern"


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("tulip anvil", "password_too_short"),
        ("tulip anvil " * 22, "password_too_long"),
        ("projectproject1", "password_too_common"),
        ("annannannann", "password_too_common"),
    ],
)
def test_a_bad_password_is_refused_and_nothing_happens(session, hasher, sent, password, code):
    with pytest.raises(Invalid) as caught:
        links.register(email=ANN, password=password)
    assert [(field.pointer, field.code) for field in caught.value.errors] == [("/password", code)]
    assert hasher.hashed == 0
    assert sent() == []


def test_a_registration_makes_an_account_that_waits_for_its_mail(session, sent, audited):
    links.register(email=ANN, password=PASSWORD, name="Ann")
    assert users.find_by_email(ANN) is None, "the request itself does nothing that its time could tell"
    assert sent() == [("verify_email", ANN)]
    user = users.get_by_email(ANN)
    assert (user.name, user.role, user.email_verified, user.is_active) == ("Ann", Role.USER, False, True)
    assert not signs_in(PASSWORD)
    assert audited() == ["user_created"]


def test_the_mailed_link_confirms_the_address_and_the_account_signs_in(session, mailed_token, audited):
    links.register(email=ANN, password=PASSWORD)
    user = links.verify_email(token=mailed_token("verify_email"))
    assert user.email_verified
    assert signs_in(PASSWORD)
    assert audited() == ["user_created", "email_verified", "login"]


def test_a_taken_address_changes_nothing_and_tells_its_owner(session, sent, audited):
    make_user(email=ANN, name="Ann")
    links.register(email=ANN, password=OTHER_PASSWORD, name="Eve")
    assert sent() == [("already_registered", ANN)]
    assert users.get_by_email(ANN).name == "Ann"
    assert (signs_in(PASSWORD), signs_in(OTHER_PASSWORD)) == (True, False)
    assert audited() == ["login"]


@pytest.mark.parametrize("email_verified", [True, False])
def test_a_deactivated_account_cannot_be_registered_again(session, sent, email_verified):
    make_user(email=ANN, is_active=False, email_verified=email_verified)
    links.register(email=ANN, password=OTHER_PASSWORD)
    assert sent() == [("already_registered", ANN)]
    assert not users.get_by_email(ANN).is_active


@pytest.mark.parametrize(("followed", "password"), [(0, PASSWORD), (1, OTHER_PASSWORD)])
def test_a_link_confirms_the_password_of_its_own_registration(session, sent, outbox, followed, password):
    links.register(email=ANN, password=PASSWORD)
    links.register(email=ANN, password=OTHER_PASSWORD)
    assert sent() == [("verify_email", ANN)] * 2
    mailed = [message.context["link"].partition("#token=")[2] for message in outbox]
    links.verify_email(token=mailed[followed])
    assert [one for one in (PASSWORD, OTHER_PASSWORD) if signs_in(one)] == [password]
    with pytest.raises(InvalidLink):
        links.verify_email(token=mailed[1 - followed])


def test_a_verification_cannot_change_the_password_of_a_confirmed_account(session, outbox):
    user = make_user(email=ANN)
    links.send_link(user, LinkPurpose.VERIFY_EMAIL, to=ANN, password_hash="of a stranger, sent a moment too late")
    with pytest.raises(InvalidLink):
        links.verify_email(token=outbox[0].context["link"].partition("#token=")[2])
    assert signs_in(PASSWORD)


@pytest.mark.parametrize("role", [Role.USER, Role.ADMIN])
def test_a_stranger_cannot_take_an_invited_account(session, sent, mailed_token, role):
    make_user(email=ANN, role=role, password=False, email_verified=False)
    links.register(email=ANN, password=OTHER_PASSWORD)
    assert sent() == [("invitation", ANN)]
    token = mailed_token("invitation")
    with pytest.raises(InvalidLink):
        links.verify_email(token=token)
    links.reset_password(token=token, password=PASSWORD)
    assert (signs_in(PASSWORD), signs_in(OTHER_PASSWORD)) == (True, False)


def test_a_deactivated_account_is_not_confirmed(session, mailed_token):
    links.register(email=ANN, password=PASSWORD)
    token = mailed_token("verify_email")
    user = users.get_by_email(ANN)
    users.update_user(user.id, actor_id=None, is_active=False)
    with pytest.raises(InvalidLink):
        links.verify_email(token=token)
    users.update_user(user.id, actor_id=None, is_active=True)
    assert links.verify_email(token=token).email_verified, "the link was not used up"


def test_a_job_that_runs_twice_makes_one_account(session, outbox):
    for _ in range(2):
        links.complete_registration(email=ANN, name=None, password_hash="one")
    assert [message.template for message in outbox] == ["verify_email"] * 2
    for message in outbox[1:]:
        links.verify_email(token=message.context["link"].partition("#token=")[2])


def test_who_registers_composed_does_not_sign_in_decomposed(session, mailed_token):
    composed = normalize("NFC", "résumé of my life")
    links.register(email=ANN, password=composed)
    links.verify_email(token=mailed_token("verify_email"))
    assert signs_in(composed)
    assert not signs_in(normalize("NFD", composed))


def test_a_verification_that_is_asked_for_again_confirms_the_last_password(session, sent, outbox):
    links.register(email=ANN, password=OTHER_PASSWORD)
    links.register(email=ANN, password=PASSWORD)
    links.resend_verification(email=ANN)
    assert sent() == [("verify_email", ANN)] * 3
    links.verify_email(token=outbox[-1].context["link"].partition("#token=")[2])
    assert signs_in(PASSWORD)


def test_no_link_is_left_after_a_verification(session, mailed_token):
    for _ in range(2):
        links.register(email=ANN, password=PASSWORD)
    links.forgot_password(email=ANN)
    links.verify_email(token=mailed_token("verify_email"))
    with pytest.raises(InvalidLink):
        links.reset_password(token=mailed_token("reset_password"), password=OTHER_PASSWORD)
    assert session.scalars(select(Link)).all() == []


@pytest.mark.parametrize(
    ("attributes", "mails"),
    [
        (None, []),
        ({}, []),
        ({"email_verified": False, "is_active": False}, []),
        ({"email_verified": False, "password": False}, [("invitation", ANN)]),
    ],
    ids=["nobody", "confirmed", "deactivated", "invited"],
)
def test_a_verification_is_sent_only_to_an_account_that_waits_for_it(session, sent, attributes, mails):
    if attributes is not None:
        make_user(email=ANN, **attributes)
    links.resend_verification(email=ANN)
    assert sent() == mails


def test_a_mailbox_gets_five_mails_of_a_kind_an_hour_whatever_asks_for_them(session, sent, outbox, time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    make_user(email=ANN, email_verified=False)
    for _ in range(3):
        links.resend_verification(email=ANN)
        links.register(email=ANN, password=PASSWORD)
    assert sent() == [("verify_email", ANN)] * 5
    outbox.clear()
    links.register(email="ben@example.com", password=PASSWORD)
    assert sent() == [("verify_email", "ben@example.com")]
    time_machine.shift(3601)
    links.resend_verification(email=ANN)
    assert sent() == [("verify_email", "ben@example.com"), ("verify_email", ANN)]


def test_asking_for_one_mail_does_not_suppress_another(session, sent):
    make_user(email=ANN)
    for _ in range(10):
        links.resend_verification(email=ANN)
        links.resend_verification(email="ben@example.com")
    links.forgot_password(email=ANN)
    links.register(email="ben@example.com", password=PASSWORD)
    assert sent() == [("reset_password", ANN), ("verify_email", "ben@example.com")]


def test_a_registration_beyond_the_mailboxs_share_still_makes_the_account(session, sent, outbox, run_jobs):
    for _ in range(6):
        links.register(email=ANN, password=PASSWORD)
        run_jobs()
        users.erase_user(users.get_by_email(ANN).id, actor_id=None)
    assert len(outbox) == 5
    links.register(email=ANN, password=PASSWORD)
    run_jobs()
    assert users.find_by_email(ANN)
