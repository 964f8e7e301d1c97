from unicodedata import normalize

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.auth import credentials, links
from project.auth.links import InvalidLink
from project.auth.models import LinkPurpose
from project.auth.passwords import verify_password
from project.errors import Invalid, RateLimited
from project.security import Principal, Role
from project.users import service as users
from project.users.service import EmailTaken
from tests.auth.asking import ANN, is_alive, signs_in
from tests.factories import PASSWORD, make_session, make_user

pytestmark = pytest.mark.usefixtures("hasher")

NEW_PASSWORD = "tulip anvil grape lantern"
NEW_EMAIL = "ann@example.org"
WRONG = "wrong horse battery staple"


@pytest.fixture
def current(session):
    """The session that asks."""
    return make_session(make_user(email=ANN, name="Ann"))


@pytest.fixture
def caller(current):
    return Principal(account=users.get_user(current.user_id), session_id=current.id)


def refusals(call, *args, **kwargs) -> list[tuple[str, str]]:
    """The pointers and codes that a call is refused with."""
    with pytest.raises(Invalid) as caught:
        call(*args, **kwargs)
    return [(field.pointer, field.code) for field in caught.value.errors]


def change(caller, *, to: str = NEW_PASSWORD, current: str = PASSWORD) -> None:
    credentials.change_password(caller, current_password=current, new_password=to)


def test_a_wrong_current_password_changes_nothing(caller, hasher, sent, audited):
    assert refusals(change, caller, current=WRONG) == [("/current_password", "invalid_credentials")]
    assert (hasher.verified, hasher.hashed) == (1, 0)
    assert (sent(), audited()) == ([], [])
    assert signs_in(PASSWORD)


def test_an_account_without_a_password_has_none_to_change(caller, session):
    caller.account.password_hash = None
    assert refusals(change, caller) == [("/current_password", "invalid_credentials")]


def test_a_changed_password_is_the_one_that_signs_in(caller):
    change(caller)
    assert (signs_in(PASSWORD), signs_in(NEW_PASSWORD)) == (False, True)


def test_a_changed_password_ends_the_other_sessions_and_keeps_this_one(caller, current):
    other = make_session(caller.account)
    stranger = make_session(make_user())
    change(caller)
    assert [is_alive(one) for one in (current, other, stranger)] == [True, False, True]


def test_a_change_of_password_is_audited_once_and_its_owner_told(caller, session, sent):
    make_session(caller.account)
    change(caller)
    (event,) = session.scalars(select(AuditEvent)).all()
    assert (event.action, event.actor_id, event.target_id) == ("password_changed", caller.id, caller.id)
    assert sent() == [("password_changed", ANN)]


def test_a_change_of_password_makes_a_new_version_of_the_account(caller, session):
    before = users.get_user(caller.id).version
    change(caller)
    session.expire_all()
    assert users.get_user(caller.id).version == before + 1, "clients see updated_at change, so the ETag has to"


@pytest.mark.parametrize("purpose", [LinkPurpose.RESET_PASSWORD, LinkPurpose.CONFIRM_EMAIL])
def test_a_changed_password_disables_the_links_that_were_mailed(caller, outbox, purpose):
    links.send_link(caller.account, purpose, to=ANN, email=NEW_EMAIL)
    token = outbox[0].context["link"].partition("#token=")[2]
    change(caller)
    with pytest.raises(InvalidLink):
        links.reset_password(token=token, password=PASSWORD)
    with pytest.raises(InvalidLink):
        credentials.confirm_email(token=token)


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("tulip anvil", "password_too_short"),
        ("x" * 257, "password_too_long"),
        ("projectproject1", "password_too_common"),
        ("ann@example.com", "password_too_common"),
    ],
)
def test_a_bad_new_password_is_refused(caller, password, code):
    assert refusals(change, caller, to=password) == [("/new_password", code)]
    assert signs_in(PASSWORD)


def test_the_new_password_may_be_the_old_one(caller):
    change(caller, to=PASSWORD)
    assert signs_in(PASSWORD)


def test_a_password_is_changed_to_exactly_what_was_sent(caller):
    composed = normalize("NFC", "résumé of my life")
    change(caller, to=composed)
    assert refusals(change, caller, current=normalize("NFD", composed)) == [
        ("/current_password", "invalid_credentials")
    ]
    change(caller, current=composed)


@pytest.mark.parametrize("password", [PASSWORD, WRONG])
def test_after_five_wrong_passwords_none_is_looked_at(caller, hasher, password):
    for _ in range(5):
        assert refusals(change, caller, current=WRONG) == [("/current_password", "invalid_credentials")]
    verified = hasher.verified
    with pytest.raises(RateLimited):
        change(caller, current=password)
    with pytest.raises(RateLimited):
        credentials.request_email_change(caller, new_email=NEW_EMAIL, password=password)
    with pytest.raises(RateLimited):
        credentials.erase_account(caller, password=password)
    assert hasher.verified == verified == 5


def test_wrong_passwords_are_forgotten_after_ten_minutes_or_a_right_one(caller, time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    for _ in range(5):
        refusals(change, caller, current=WRONG)
    time_machine.shift(601)
    for _ in range(2):
        for _ in range(4):
            refusals(change, caller, current=WRONG)
        change(caller, to=PASSWORD)


def test_another_session_has_tries_of_its_own(caller):
    other = Principal(account=caller.account, session_id=make_session(caller.account).id)
    for _ in range(6):
        with pytest.raises((Invalid, RateLimited)):
            change(caller, current=WRONG)
    change(other)


def test_of_two_changes_at_once_the_second_is_refused(caller, hasher, in_app):
    def meddle():
        hasher.meanwhile = lambda: None
        in_app(change, caller)

    hasher.meanwhile = meddle
    assert refusals(change, caller, to="lantern grape anvil tulip") == [("/current_password", "invalid_credentials")]
    hasher.meanwhile = lambda: None
    assert signs_in(NEW_PASSWORD)


def ask(caller, *, new_email: str = NEW_EMAIL, password: str = PASSWORD) -> None:
    credentials.request_email_change(caller, new_email=new_email, password=password)


def test_a_change_of_address_wants_the_password(caller, sent, audited):
    assert refusals(ask, caller, password=WRONG) == [("/password", "invalid_credentials")]
    assert (sent(), audited()) == ([], [])


def test_a_change_of_address_is_told_to_both_and_nothing_changes_yet(caller, sent, audited):
    ask(caller)
    assert sent() == [("email_change_requested", ANN), ("confirm_email", NEW_EMAIL)]
    assert audited() == ["email_change_requested"]
    assert (signs_in(PASSWORD), signs_in(PASSWORD, NEW_EMAIL)) == (True, False)


def test_a_confirmed_address_is_the_one_that_signs_in(caller, current, sent, mailed_token, audited):
    ask(caller)
    credentials.confirm_email(token=mailed_token("confirm_email"))
    user = users.get_user(caller.id)
    assert (user.email, user.email_verified) == (NEW_EMAIL, True)
    assert (signs_in(PASSWORD), signs_in(PASSWORD, NEW_EMAIL)) == (False, True)
    assert is_alive(current)
    assert sent()[2:] == [("email_changed", ANN)]
    assert audited() == ["email_change_requested", "email_changed", "login"]


def test_a_confirmed_address_disables_the_links_sent_to_the_old_one(caller, mailed_token):
    links.forgot_password(email=ANN)
    reset = mailed_token("reset_password")
    ask(caller)
    confirmation = mailed_token("confirm_email")
    credentials.confirm_email(token=confirmation)
    with pytest.raises(InvalidLink):
        links.reset_password(token=reset, password=NEW_PASSWORD)
    with pytest.raises(InvalidLink):
        credentials.confirm_email(token=confirmation)


def test_only_the_last_address_asked_for_can_be_confirmed(caller, mailed_token):
    ask(caller, new_email="first@example.org")
    first = mailed_token("confirm_email")
    ask(caller)
    second = mailed_token("confirm_email")
    with pytest.raises(InvalidLink):
        credentials.confirm_email(token=first)
    credentials.confirm_email(token=second)
    assert signs_in(PASSWORD, NEW_EMAIL)


def test_a_taken_address_is_told_to_its_owner_only(caller, sent):
    make_user(email=NEW_EMAIL)
    ask(caller)
    assert sent() == [("email_change_requested", ANN), ("already_registered", NEW_EMAIL)]


def test_an_address_taken_since_is_not_confirmed(caller, mailed_token, audited):
    ask(caller)
    token = mailed_token("confirm_email")
    make_user(email=NEW_EMAIL)
    with pytest.raises(InvalidLink):
        credentials.confirm_email(token=token)
    assert users.get_user(caller.id).email == ANN
    assert audited() == ["email_change_requested"]


def test_a_deactivated_account_gets_no_confirmation_and_confirms_nothing(caller, mailed_token, sent):
    ask(caller)
    token = mailed_token("confirm_email")
    users.update_user(caller.id, actor_id=None, is_active=False)
    with pytest.raises(InvalidLink):
        credentials.confirm_email(token=token)
    credentials.send_confirmation(user_id=str(caller.id), new_email="other@example.org")
    assert len(sent()) == 2


def test_changes_of_address_do_not_fill_a_strangers_mailbox(caller, sent):
    for _ in range(8):
        ask(caller)
    assert len([to for _, to in sent() if to == NEW_EMAIL]) == 5


def test_the_account_is_erased_only_with_its_password(caller, current):
    assert refusals(credentials.erase_account, caller, password=WRONG) == [("/password", "invalid_credentials")]
    assert is_alive(current)
    credentials.erase_account(caller, password=PASSWORD)
    assert not is_alive(current)
    assert not signs_in(PASSWORD)


def test_an_admin_is_made_confirmed_and_with_a_good_password(session):
    assert refusals(credentials.create_admin, email=ANN, password="projectproject1") == [
        ("/password", "password_too_common")
    ]
    user = credentials.create_admin(email=ANN, password=PASSWORD)
    assert (user.role, user.email_verified) == (Role.ADMIN, True)
    assert verify_password(PASSWORD, user.password_hash)
    with pytest.raises(EmailTaken):
        credentials.create_admin(email=ANN, password=PASSWORD)
