"""That each operation writes the one event it should, of ids only."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.auth.service import SUCCESSOR_GRACE
from project.database import db, utcnow
from project.security import Role
from tests.conftest import Caller
from tests.factories import PASSWORD

IP = "203.0.113.7"
REQUEST_ID = "a-request-of-the-trail"
ANN = "ann.canary@example.com"
NEW_PASSWORD = "canary horse battery staple"
# What may be in no event: addresses, names, passwords, hashes, tokens.
PERSONAL = re.compile(rf"canary|@|{PASSWORD}|eyJ|\$argon2|[\w-]{{43}}|203\.0\.113", re.IGNORECASE)

Event = tuple[str, UUID | None, str | None, UUID | None]


@pytest.fixture
def ann(as_user) -> Caller:
    """A user whose account is acted upon."""
    caller: Caller = as_user(email=ANN, name="Ann Canary")
    return caller


@pytest.fixture
def happened(client, in_app) -> Callable[..., list[Event]]:
    """Send a request and return the events that it wrote: action, actor, type and id of the target."""

    def read() -> dict[UUID, AuditEvent]:
        events = in_app(lambda: db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all())
        return {event.id: event for event in events}

    def send(method: str, path: str, status: int, body: Any = None, headers: Any = None) -> list[Event]:
        before, started = read(), utcnow()
        response = client.open(
            f"/v1{path}",
            method=method,
            json=body,
            headers={**(headers or {}), "X-Request-ID": REQUEST_ID},
            environ_base={"REMOTE_ADDR": IP},
        )
        assert response.status_code == status, response.data
        written = [event for event_id, event in read().items() if event_id not in before]
        for event in written:
            assert (event.ip, event.request_id) == (IP, REQUEST_ID)
            assert started <= event.at <= utcnow()
            assert not PERSONAL.search(json.dumps(event.data)), event.data
        return [(event.action, event.actor_id, event.target_type, event.target_id) for event in written]

    return send


@pytest.fixture
def link(run_jobs, outbox) -> Callable[[str], str]:
    """The token in the newest mail of a template."""

    def token(template: str) -> str:
        run_jobs()
        mails = [message for message in outbox if message.template == template]
        return str(mails[-1].context["link"]).partition("#token=")[2]

    return token


def session_of(caller: Caller, client) -> UUID:
    sessions = client.get("/v1/auth/sessions", headers=caller).json["data"]
    return UUID(next(session["id"] for session in sessions if session["current"]))


def test_a_sign_in(happened, ann):
    ((action, actor_id, target_type, target_id),) = happened(
        "POST", "/auth/login", 200, {"email": ANN, "password": PASSWORD}
    )
    assert (action, actor_id, target_type) == ("login", ann.user.id, "session")
    assert target_id is not None


def test_a_refresh_is_none(happened, ann):
    assert happened("POST", "/auth/refresh", 200, headers=ann.refreshing) == []


def test_a_reused_refresh_token(happened, ann, client, time_machine):
    session_id = session_of(ann, client)
    happened("POST", "/auth/refresh", 200, headers=ann.refreshing)
    time_machine.move_to(utcnow() + SUCCESSOR_GRACE + timedelta(seconds=1))
    refused = happened("POST", "/auth/refresh", 401, headers=ann.refreshing)
    assert refused == [("token_reused", ann.user.id, "session", session_id)]
    assert happened("POST", "/auth/refresh", 401, headers=ann.refreshing) == []


def test_a_sign_out(happened, ann, client):
    session_id = session_of(ann, client)
    assert happened("POST", "/auth/logout", 204, headers=ann) == [("logout", ann.user.id, "session", session_id)]
    assert happened("POST", "/auth/logout", 401, headers=ann) == []


def test_ending_a_session(happened, ann, client, sign_in):
    other = session_of(sign_in(ann.user), client)
    ended = happened("DELETE", f"/auth/sessions/{other}", 204, headers=ann)
    assert ended == [("session_ended", ann.user.id, "session", other)]
    assert happened("DELETE", f"/auth/sessions/{other}", 404, headers=ann) == []


@pytest.mark.parametrize("path", ["/auth/sessions", "/auth/sessions?others=true"])
def test_ending_sessions(happened, ann, path):
    assert happened("DELETE", path, 204, headers=ann) == [("sessions_ended", ann.user.id, "user", ann.user.id)]


def test_a_registration_and_its_confirmation(happened, in_app, link):
    body = {"email": ANN, "password": NEW_PASSWORD, "name": "Ann Canary"}
    assert happened("POST", "/auth/register", 202, body) == []
    token = link("verify_email")
    (created,) = in_app(lambda: db.session.scalars(select(AuditEvent)).all())
    assert (created.action, created.actor_id, created.target_type) == ("user_created", None, "user")
    assert not PERSONAL.search(json.dumps(created.data))
    user_id = created.target_id
    confirmed = happened("POST", "/auth/verify-email", 200, {"token": token})
    assert confirmed == [("email_verified", user_id, "user", user_id)]
    assert happened("POST", "/auth/verify-email", 400, {"token": token}) == []


def test_a_reset_of_the_password(happened, ann, link):
    assert happened("POST", "/auth/forgot-password", 202, {"email": ANN}) == []
    token = link("reset_password")
    for password in ("short", "passwordpassword"):
        assert happened("POST", "/auth/reset-password", 422, {"token": token, "password": password}) == []
    body = {"token": token, "password": NEW_PASSWORD}
    assert happened("POST", "/auth/reset-password", 204, body) == [("password_reset", ann.user.id, "user", ann.user.id)]
    assert happened("POST", "/auth/reset-password", 400, body) == []


def test_a_change_of_the_password(happened, ann):
    body = {"current_password": "wrong", "new_password": NEW_PASSWORD}
    assert happened("POST", "/auth/change-password", 422, body, ann) == []
    body["current_password"] = PASSWORD
    changed = happened("POST", "/auth/change-password", 204, body, ann)
    assert changed == [("password_changed", ann.user.id, "user", ann.user.id)]


def test_a_change_of_the_address(happened, ann, link):
    user = ("user", ann.user.id)
    body = {"new_email": "new.canary@example.com", "password": PASSWORD}
    asked = happened("POST", "/auth/change-email", 202, body, ann)
    assert asked == [("email_change_requested", ann.user.id, *user)]
    confirmed = happened("POST", "/auth/confirm-email", 204, {"token": link("confirm_email")})
    assert confirmed == [("email_changed", ann.user.id, *user)]


def test_a_change_of_ones_own_name(happened, ann):
    changed = happened("PATCH", "/users/me", 200, {"name": "Ann C. Canary"}, ann)
    assert changed == [("name_changed", ann.user.id, "user", ann.user.id)]


def test_ones_own_erasure(happened, ann):
    assert happened("POST", "/users/me/erase", 422, {"password": "wrong"}, ann) == []
    erased = happened("POST", "/users/me/erase", 204, {"password": PASSWORD}, ann)
    assert erased == [("user_erased", ann.user.id, "user", ann.user.id)]


def test_an_invitation_and_its_acceptance(happened, as_admin, link, client):
    body = {"email": "guest.canary@example.com", "role": "staff", "name": "Guest Canary"}
    ((action, actor_id, target_type, user_id),) = happened("POST", "/users", 201, body, as_admin)
    assert (action, actor_id, target_type) == ("user_created", as_admin.user.id, "user")
    assert happened("POST", "/users", 409, body, as_admin) == []
    again = happened("POST", f"/users/{user_id}/invitation", 202, None, as_admin)
    assert again == [("user_invited", as_admin.user.id, "user", user_id)]
    body = {"token": link("invitation"), "password": NEW_PASSWORD}
    accepted = happened("POST", "/auth/reset-password", 204, body)
    assert accepted == [("password_reset", user_id, "user", user_id)]
    assert happened("POST", f"/users/{user_id}/invitation", 409, None, as_admin) == []


def test_a_repeated_request_is_no_second_event(happened, as_admin):
    body = {"email": "guest.canary@example.com", "role": "staff"}
    headers = {**as_admin, "Idempotency-Key": "k"}
    assert [len(happened("POST", "/users", 201, body, headers)) for _ in range(2)] == [1, 0]


BY_ADMINS = [
    ("PATCH", "", {"role": "staff"}, "role_changed"),
    ("PATCH", "", {"is_active": False}, "user_deactivated"),
    ("PATCH", "", {"is_active": True}, "user_activated"),
    ("PATCH", "", {"name": "Ann C. Canary"}, "name_changed"),
    ("DELETE", "", None, "user_erased"),
    ("DELETE", "/sessions", None, "sessions_ended"),
]


@pytest.mark.parametrize(("method", "path", "body", "action"), BY_ADMINS)
def test_what_admins_do_to_an_account(happened, as_admin, ann, method, path, body, action):
    status = 204 if method == "DELETE" else 200
    done = happened(method, f"/users/{ann.user.id}{path}", status, body, as_admin)
    assert done == [(action, as_admin.user.id, "user", ann.user.id)]


@pytest.mark.parametrize(("method", "path", "body", "action"), BY_ADMINS)
def test_what_is_refused_is_none(happened, as_user, as_admin, ann, erased_id, method, path, body, action):
    target = f"/users/{ann.user.id}{path}"
    assert happened(method, target, 401, body) == []
    assert happened(method, target, 403, body, as_user(role=Role.STAFF)) == []
    assert happened(method, f"/users/{erased_id}{path}", 404, body, as_admin) == []
    if not path:
        assert happened(method, target, 412, body, {**as_admin, "If-Match": '"other"'}) == []


@pytest.fixture
def erased_id(client, as_user, as_admin) -> UUID:
    """The id of an account that was erased."""
    user_id: UUID = as_user().user.id
    client.delete(f"/v1/users/{user_id}", headers=as_admin)
    return user_id


@pytest.mark.parametrize("path", ["/users", "/users/{}", "/users/me", "/audit-events"])
def test_reading_is_none(happened, as_admin, ann, path):
    assert happened("GET", path.format(ann.user.id), 200, None, as_admin) == []
