import hashlib
import re
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from project.auth import links, tokens
from project.auth.links import InvalidLink
from project.auth.models import Link, LinkPurpose
from project.auth.service import SignIn
from project.database import db, transaction
from project.users import service as users
from tests.auth.asking import ANN
from tests.factories import PASSWORD, make_session, make_user

LINKS = {
    LinkPurpose.VERIFY_EMAIL: ("/verify-email", timedelta(hours=24)),
    LinkPurpose.RESET_PASSWORD: ("/reset-password", timedelta(minutes=30)),
    LinkPurpose.CONFIRM_EMAIL: ("/confirm-email", timedelta(minutes=30)),
    LinkPurpose.INVITATION: ("/invitation", timedelta(days=7)),
}
REPLACING = [purpose for purpose in LINKS if purpose is not LinkPurpose.VERIFY_EMAIL]


@pytest.fixture
def user(session):
    return make_user(email=ANN)


@pytest.fixture
def send(outbox):
    """Send a link and return its token."""

    def send_link(user, purpose, **bound) -> str:
        links.send_link(user, purpose, to=ANN, **bound)
        return outbox[-1].context["link"].partition("#token=")[2]

    return send_link


def redeem(token: str, *purposes: LinkPurpose) -> Link:
    with transaction():
        return links.redeem(token, *(purposes or LinkPurpose))


def is_good(token: str) -> bool:
    """Tell whether a link could be followed, and leave it as it is."""
    try:
        with transaction():
            links.redeem(token, *LinkPurpose)
            raise InterruptedError
    except InterruptedError:
        return True
    except InvalidLink:
        return False


def dump() -> str:
    """Everything in the database, as text."""
    tables = db.inspect(db.engine).get_table_names()
    rows = [db.session.execute(db.text(f'SELECT * FROM "{table}"')).all() for table in tables]
    return f"{tables}{rows}"


@pytest.mark.parametrize("purpose", LINKS)
def test_a_link_leads_into_the_client_and_stands_on_a_line_of_its_own(user, send, outbox, purpose):
    token = send(user, purpose)
    (message,) = outbox
    assert (message.template, message.to) == (purpose.value, ANN)
    assert message.text.splitlines().count(f"http://localhost:5173{LINKS[purpose][0]}#token={token}") == 1
    assert re.fullmatch(r"[\w-]{43}", token, re.ASCII), "256 bits"


@pytest.mark.parametrize("purpose", LINKS)
def test_a_link_works_once(user, send, purpose):
    token = send(user, purpose)
    assert redeem(token, purpose).user_id == user.id
    with pytest.raises(InvalidLink):
        redeem(token, purpose)


@pytest.mark.parametrize("purpose", LINKS)
def test_a_link_works_for_its_time(user, send, time_machine, purpose):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    token = send(user, purpose)
    time_machine.shift(LINKS[purpose][1] - timedelta(seconds=1))
    assert is_good(token)
    time_machine.shift(1)
    assert not is_good(token)


@pytest.mark.parametrize("purpose", LINKS)
def test_a_link_is_for_one_purpose(user, send, purpose):
    token = send(user, purpose)
    with pytest.raises(InvalidLink):
        redeem(token, *(other for other in LINKS if other is not purpose))
    assert is_good(token)


def test_a_refused_use_leaves_the_link_as_it_was(user, send):
    token = send(user, LinkPurpose.RESET_PASSWORD)
    assert is_good(token)
    assert is_good(token)


def test_a_changed_token_is_no_token(user, send):
    token = send(user, LinkPurpose.RESET_PASSWORD)
    digest = hashlib.sha256(token.encode()).hexdigest()
    for other in (token[:-1], token + "A", " " + token, token.swapcase(), token[::-1], digest, "", "ä", "🦉"):
        assert not is_good(other)


def test_tokens_are_nowhere_in_the_database(user, send, run_jobs):
    issued = tokens.issue(SignIn(make_session(user), user, fresh=True))
    secrets = [send(user, purpose) for purpose in LINKS]
    links.register(email="new@example.com", password=PASSWORD)
    before_the_job = dump()
    run_jobs()
    stored = before_the_job + dump()
    for secret in (*secrets, issued["refresh_token"], issued["access_token"], PASSWORD):
        assert secret not in stored
    for secret in secrets:
        assert hashlib.sha256(secret.encode()).hexdigest() in stored
    assert "new@example.com" in before_the_job


@pytest.mark.parametrize("purpose", REPLACING)
def test_a_newer_link_replaces_the_older_ones_of_its_purpose(session, user, send, purpose):
    stranger = make_user()
    others = [send(user, other) for other in LINKS if other is not purpose] + [send(stranger, purpose)]
    first, second, third = (send(user, purpose) for _ in range(3))
    assert [is_good(token) for token in (first, second, third)] == [False, False, True]
    assert all(is_good(token) for token in others)


def test_five_verifications_work_beside_each_other(session, user, send):
    six = [send(user, LinkPurpose.VERIFY_EMAIL) for _ in range(6)]
    assert [is_good(token) for token in six] == [False] + [True] * 5


def test_verifications_of_others_do_not_count(session, user, send):
    first = send(user, LinkPurpose.VERIFY_EMAIL)
    stranger = make_user()
    for _ in range(6):
        send(stranger, LinkPurpose.VERIFY_EMAIL)
    second = send(user, LinkPurpose.VERIFY_EMAIL)
    assert is_good(first)
    assert is_good(second)


def test_housekeeping_deletes_what_nobody_can_follow(session, user, send, time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    send(user, LinkPurpose.RESET_PASSWORD)
    kept = send(user, LinkPurpose.INVITATION)
    time_machine.shift(timedelta(minutes=31))
    links.purge()
    assert is_good(kept)
    assert session.scalar(select(func.count()).select_from(Link)) == 1


def test_an_erased_account_has_no_links(session, user, send):
    strangers = send(make_user(), LinkPurpose.RESET_PASSWORD)
    for purpose in LINKS:
        send(user, purpose)
    users.erase_user(user.id, actor_id=None)
    assert session.scalar(select(func.count()).select_from(Link)) == 1
    assert is_good(strangers)


def test_a_notice_is_mailed_as_it_is(session, outbox):
    links.send_notice(template="password_changed", to=ANN)
    assert [(message.template, message.to) for message in outbox] == [("password_changed", ANN)]
