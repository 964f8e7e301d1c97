from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import func, select

from project import jobs
from project.auth import credentials, links
from project.auth.models import LinkPurpose, Session
from project.database import db
from project.security import Principal
from project.users import service as users
from project.users.models import User
from tests.auth.asking import ANN
from tests.auth.conftest import ADMITTED
from tests.factories import PASSWORD, make_session, make_user

pytestmark = pytest.mark.usefixtures("hasher")

SESSIONS = "/v1/auth/sessions"
NEW_PASSWORD = "tulip anvil grape lantern"
WRONG = "wrong horse battery staple"


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call all of them at the same moment, each in a thread, and return what they returned."""
    ready = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        ready.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


@pytest.fixture
def post(app):
    """Post JSON to an operation of auth, from any thread."""
    return lambda operation, headers=None, **body: app.test_client().post(
        f"/v1/auth/{operation}", json=body, headers=headers
    )


def statuses(responses) -> Counter[int]:
    return Counter(response.status_code for response in responses)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_fifty_refreshes_of_one_token_get_one_successor(client, post, as_user, audited):
    caller = as_user()
    responses = at_once(*[lambda: post("refresh", caller.refreshing)] * 50)
    assert statuses(responses) == {200: 50}
    (successor,) = {response.json["data"]["refresh_token"] for response in responses}
    for response in responses:
        assert client.get(SESSIONS, headers=bearer(response.json["data"]["access_token"])).status_code == 200
    assert successor != caller.refresh_token
    assert post("refresh", bearer(successor)).status_code == 200
    assert audited() == []


def test_ten_reuses_at_once_are_one_event(client, post, as_user, audited, sent):
    caller = as_user()
    for headers in (caller.refreshing, bearer(post("refresh", caller.refreshing).json["data"]["refresh_token"])):
        post("refresh", headers)
    responses = at_once(*[lambda: post("refresh", caller.refreshing)] * 10)
    assert statuses(responses) == {401: 10}
    assert {response.json["code"] for response in responses} <= {"token_reused", "session_revoked"}
    assert audited() == ["token_reused"]
    assert [template for template, _ in sent()] == ["sessions_ended"]


def test_of_ten_sign_outs_at_once_one_succeeds(post, as_user, audited):
    caller = as_user()
    responses = at_once(*[lambda: post("logout", caller)] * 10)
    assert statuses(responses) == {204: 1, 401: 9}
    assert audited() == ["logout"]


@pytest.fixture
def roomy_mailboxes(app, monkeypatch):
    """Let a mailbox have as many mails as a race makes."""
    settings = app.extensions["settings"]
    limits = replace(settings.limits, mailbox="100/hour")
    monkeypatch.setitem(app.extensions, "settings", replace(settings, limits=limits))


@pytest.mark.usefixtures("roomy_mailboxes")
def test_fifty_registrations_of_one_address_make_one_account(app, in_app, post, outbox):
    with ThreadPoolExecutor(ADMITTED) as threads:
        requests = [threads.submit(post, "register", email=ANN, password=NEW_PASSWORD) for _ in range(50)]
        assert statuses(request.result() for request in requests) == {202: 50}
    ran = at_once(*[lambda: jobs.run_pending(app)] * 4)
    assert sum(ran) == len(outbox) == 50
    assert {message.template for message in outbox} == {"verify_email"}
    assert in_app(lambda: db.session.scalar(select(func.count()).select_from(User))) == 1


@pytest.mark.usefixtures("roomy_mailboxes")
def test_one_registration_that_runs_many_times_at_once_makes_one_account(app, in_app, outbox):
    def run() -> None:
        in_app(links.complete_registration, email=ANN, name=None, password_hash="one")

    for _ in range(3):
        at_once(*[run] * 8)
        user = in_app(users.get_by_email, ANN)
        in_app(users.erase_user, user.id, actor_id=None)
    assert len(outbox) == 24


@pytest.mark.usefixtures("roomy_mailboxes")
def test_of_two_resets_with_one_link_one_succeeds(in_app, post, outbox):
    user = in_app(make_user, email=ANN)
    for _ in range(20):
        in_app(links.send_link, user, LinkPurpose.RESET_PASSWORD, to=ANN)
        token = outbox[-1].context["link"].partition("#token=")[2]
        responses = at_once(*[lambda token=token: post("reset-password", token=token, password=NEW_PASSWORD)] * 2)
        assert statuses(responses) == {204: 1, 400: 1}


def test_of_two_accounts_that_confirm_one_address_one_gets_it(in_app, post, outbox):
    ann, ben = in_app(make_user, email=ANN), in_app(make_user, email="ben@example.com")
    for number in range(10):
        new_email = f"new{number}@example.com"
        tokens = []
        for user in (ann, ben):
            in_app(links.send_link, user, LinkPurpose.CONFIRM_EMAIL, to=new_email, email=new_email)
            tokens.append(outbox[-1].context["link"].partition("#token=")[2])
        responses = at_once(*[lambda token=token: post("confirm-email", token=token) for token in tokens])
        assert statuses(responses) == {204: 1, 400: 1}
        assert in_app(users.find_by_email, new_email)


def test_a_sign_in_beside_a_change_of_password_leaves_no_session(in_app, client, post, app):
    user = in_app(make_user, email=ANN)
    passwords = [PASSWORD, NEW_PASSWORD]
    for _ in range(5):
        old, new = passwords

        def change(old=old, new=new) -> None:
            with app.app_context():
                account = users.get_user(user.id)
                caller = Principal(account=account, session_id=make_session(account).id)
                credentials.change_password(caller, current_password=old, new_password=new)

        passwords.reverse()
        _, *responses = at_once(change, *[lambda old=old: post("login", email=ANN, password=old)] * 2)
        assert set(statuses(responses)) <= {200, 401}
        for response in responses:
            if response.status_code == 200:
                opened = bearer(response.json["data"]["access_token"])
                assert client.get(SESSIONS, headers=opened).json["code"] == "session_revoked"


def test_a_sign_in_beside_a_deactivation_leaves_no_session(in_app, client, post):
    user = in_app(make_user, email=ANN)
    for _ in range(5):
        in_app(users.update_user, user.id, actor_id=None, is_active=True)

        def deactivate() -> None:
            in_app(users.update_user, user.id, actor_id=None, is_active=False)

        _, *responses = at_once(deactivate, *[lambda: post("login", email=ANN, password=PASSWORD)] * 2)
        assert set(statuses(responses)) <= {200, 401}
        for response in responses:
            if response.status_code == 200:
                opened = bearer(response.json["data"]["access_token"])
                assert client.get(SESSIONS, headers=opened).json["code"] == "session_revoked"


def test_sign_ins_of_one_account_at_once_all_succeed(in_app, post):
    in_app(make_user, email=ANN)
    responses = at_once(*[lambda: post("login", email=ANN, password=PASSWORD)] * ADMITTED)
    assert statuses(responses) == {200: ADMITTED}
    assert in_app(lambda: db.session.scalar(select(func.count()).select_from(Session))) == ADMITTED


def test_of_thirty_attempts_at_once_ten_are_looked_at(in_app, post):
    in_app(make_user, email=ANN)
    with ThreadPoolExecutor(ADMITTED) as threads:
        attempts = [threads.submit(post, "login", email=ANN, password=WRONG) for _ in range(30)]
        assert statuses(attempt.result() for attempt in attempts) == {401: 10, 429: 20}


def test_a_storm_of_sign_ins_is_told_to_come_back_and_leaves_room_for_others(client, post, as_user, held_hasher):
    caller = as_user(email=ANN)
    with ThreadPoolExecutor(ADMITTED + 1) as threads:
        storm = [threads.submit(post, "login", email=f"{n}@example.com", password=WRONG) for n in range(ADMITTED + 1)]
        refused, waiting = wait(storm, timeout=30, return_when=FIRST_COMPLETED)
        assert client.get(SESSIONS, headers=caller).status_code == 200
        held_hasher.go_on.set()
    ((response,), others) = ([one.result() for one in found] for found in (refused, waiting))
    assert (response.status_code, response.json["code"]) == (503, "service_unavailable")
    assert response.headers["Retry-After"] == "1"
    assert statuses(others) == {401: ADMITTED}
