"""Who may do what: every operation of the document, tried by everybody on their own, another's and no object.

A new operation fails here until it has its rows in TABLE; a new kind of object needs a way to make one in OBJECTS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from requests import Response

from tests.http.client import PASSWORD, Account, Api, log_in, new_address
from tests.http.document import Operation, read_operations
from tests.http.tokens import claims_of

# anonymous, deactivated, user, staff, admin
Row = tuple[int, int, int, int, int]
CALLERS = ("anonymous", "deactivated", "user", "staff", "admin")


def everybody(status: int) -> Row:
    return (status,) * 5


def signed_in(status: int) -> Row:
    return (401, 401, status, status, status)


def staff(status: int) -> Row:
    return (401, 401, 403, status, status)


def admins(status: int) -> Row:
    return (401, 401, 403, 403, status)


TABLE: dict[tuple[str, str], Row] = {
    ("register", "-"): everybody(202),
    ("verifyEmail", "-"): everybody(400),
    ("resendVerification", "-"): everybody(202),
    ("login", "-"): everybody(200),
    ("refresh", "-"): signed_in(200),
    ("logout", "-"): signed_in(204),
    ("listSessions", "-"): signed_in(200),
    ("endSessions", "-"): signed_in(204),
    ("endSession", "own"): signed_in(204),
    ("endSession", "other"): signed_in(404),
    ("endSession", "missing"): signed_in(404),
    ("forgotPassword", "-"): everybody(202),
    ("resetPassword", "-"): everybody(400),
    ("changePassword", "-"): signed_in(204),
    ("changeEmail", "-"): signed_in(202),
    ("confirmEmail", "-"): everybody(400),
    ("getMe", "-"): signed_in(200),
    ("updateMe", "-"): signed_in(200),
    ("eraseMe", "-"): signed_in(204),
    ("listUsers", "-"): staff(200),
    ("createUser", "-"): admins(201),
    ("getUser", "own"): staff(200),
    ("getUser", "other"): staff(200),
    ("getUser", "missing"): staff(404),
    ("updateUser", "own"): admins(200),
    ("updateUser", "other"): admins(200),
    ("updateUser", "missing"): admins(404),
    ("deleteUser", "own"): admins(204),
    ("deleteUser", "other"): admins(204),
    ("deleteUser", "missing"): admins(404),
    ("endUserSessions", "own"): admins(204),
    ("endUserSessions", "other"): admins(204),
    ("endUserSessions", "missing"): admins(404),
    ("inviteUser", "own"): admins(409),
    ("inviteUser", "other"): admins(202),
    ("inviteUser", "missing"): admins(404),
    ("listAuditEvents", "-"): admins(200),
}
# Whoever succeeds with these is gone, so each try is with an account of its own.
LAST_ACTS = {("eraseMe", "-"), ("deleteUser", "own")}


@dataclass(frozen=True)
class Cast:
    """The accounts that try, and what is needed to make what they try it on."""

    server: Api
    director: Account
    invite: Callable[[str], Account]
    players: dict[str, Account]

    def enter(self, who: str, *, for_the_last_time: bool) -> Account:
        """Return a caller with a session of its own; the anonymous one has no token, the deactivated a dead one."""
        player = self.players[who]
        if who in {"anonymous", "deactivated"}:
            return player
        return self.invite(who) if for_the_last_time else log_in(self.server, player.email)


@pytest.fixture(scope="module")
def cast(anonymous: Api, admin: Account, invite: Callable[[str], Account]) -> Cast:
    """Everybody."""
    players = {role: invite(role) for role in ("user", "staff", "admin")}
    players["deactivated"] = invite("user")
    response = admin.api.patch(f"/v1/users/{players['deactivated'].id}", json={"is_active": False})
    assert response.status_code == 200
    players["anonymous"] = Account(str(uuid4()), "", anonymous, "")
    return Cast(anonymous, admin, invite, players)


def user_id(cast: Cast, caller: Account, target: str) -> str:
    if target == "own":
        return caller.id
    response = cast.director.api.post("/v1/users", json={"email": new_address(), "role": "user"})
    return str(response.json()["data"]["id"])


def session_id(cast: Cast, caller: Account, target: str) -> str:
    owner = caller if target == "own" and caller.api.token else cast.director
    return str(claims_of(owner.access_token)["sid"])


# How to find the object of a path: the caller's own, or another's that the caller may do most with.
OBJECTS: dict[str, Callable[[Cast, Account, str], str]] = {"user_id": user_id, "session_id": session_id}
# Bodies that succeed, where the example of the document does not.
BODIES: dict[str, Callable[[Account], dict[str, Any]]] = {
    "register": lambda _: {"email": new_address(), "password": PASSWORD},
    "resendVerification": lambda _: {"email": new_address()},
    "login": lambda caller: {"email": caller.email, "password": PASSWORD},
    "forgotPassword": lambda _: {"email": new_address()},
    "resetPassword": lambda _: {"token": "unknown", "password": PASSWORD},
    "changePassword": lambda _: {"current_password": PASSWORD, "new_password": PASSWORD},
    "changeEmail": lambda _: {"new_email": new_address(), "password": PASSWORD},
    "eraseMe": lambda _: {"password": PASSWORD},
    "createUser": lambda _: {"email": new_address(), "role": "user"},
    "updateUser": lambda _: {"name": "Changed"},
}


@pytest.fixture(scope="module")
def operations(anonymous: Api) -> dict[str, Operation]:
    """The operations of the document by id."""
    return {operation.id: operation for operation in read_operations(anonymous)}


def attempt(cast: Cast, operation: Operation, target: str, who: str) -> Response:
    caller = cast.enter(who, for_the_last_time=(operation.id, target) in LAST_ACTS)
    path = operation.path
    for name, find in OBJECTS.items():
        if f"{{{name}}}" in path:
            found = str(uuid4()) if target == "missing" else find(cast, caller, target)
            path = path.replace(f"{{{name}}}", found)
    body = None
    if operation.properties:
        # Whoever has no account of their own signs in to another's.
        person = caller if who not in {"anonymous", "deactivated"} else cast.players["user"]
        body = BODIES.get(operation.id, lambda _: operation.example)(person)
    token = caller.refresh_token if operation.security == ("refresh",) else caller.api.token
    if operation.method == "GET":
        head = cast.server.request("HEAD", path, token=token)
        response = cast.server.get(path, token=token)
        assert head.status_code == response.status_code, f"HEAD of {path} answers otherwise than GET"
        return response
    return cast.server.request(operation.method, path, token=token, json=body)


def test_every_operation_has_its_rows(operations: dict[str, Operation]) -> None:
    expected = {
        (operation.id, target)
        for operation in operations.values()
        for target in (("own", "other", "missing") if "{" in operation.path else ("-",))
    }
    assert expected == set(TABLE)


@pytest.mark.parametrize(("operation_id", "target"), TABLE)
def test_who_may(cast: Cast, operations: dict[str, Operation], operation_id: str, target: str) -> None:
    operation = operations[operation_id]
    answers = [attempt(cast, operation, target, who) for who in CALLERS]
    assert tuple(answer.status_code for answer in answers) == TABLE[operation_id, target]
    for answer in answers:
        assert answer.status_code in operation.statuses
        assert answer.headers["RateLimit-Policy"]
        assert answer.headers["RateLimit"]
        if answer.status_code == 201:
            assert cast.director.api.get(answer.headers["Location"]).status_code == 200
        if answer.status_code == 204:
            assert answer.content == b""
            assert "Content-Type" not in answer.headers
        elif answer.status_code < 300:
            assert set(answer.json()) <= {"data", "meta"}
            assert "data" in answer.json()
