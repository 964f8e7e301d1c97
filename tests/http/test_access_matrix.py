"""Who may do what: every operation of the document, tried by everybody on their own, another's and no object.

A new operation fails here until it has its rows in TABLE; a new kind of object needs a way to make one in OBJECTS.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from requests import Response

from tests.files.samples import picture
from tests.http.client import PASSWORD, Account, Api, eventually, log_in, new_address
from tests.http.document import Operation, good_request, new_key, price_of, read_operations
from tests.http.payments import make_payment, pay
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
    ("getFilesConfig", "-"): signed_in(200),
    ("getUsage", "-"): signed_in(200),
    ("uploadFile", "-"): signed_in(201),
    ("uploadRawFile", "-"): signed_in(201),
    # Unless files are in a bucket, see elsewhere().
    ("startDirectUpload", "-"): signed_in(409),
    ("completeDirectUpload", "own"): signed_in(200),
    ("completeDirectUpload", "other"): signed_in(404),
    ("completeDirectUpload", "missing"): signed_in(404),
    ("listFiles", "-"): signed_in(200),
    ("getFile", "own"): signed_in(200),
    ("getFile", "other"): (401, 401, 404, 200, 200),
    ("getFile", "missing"): signed_in(404),
    ("updateFile", "own"): signed_in(200),
    ("updateFile", "other"): (401, 401, 404, 403, 403),
    ("updateFile", "missing"): signed_in(404),
    ("deleteFile", "own"): signed_in(204),
    ("deleteFile", "other"): (401, 401, 404, 403, 204),
    ("deleteFile", "missing"): signed_in(404),
    ("getQuota", "own"): admins(200),
    ("getQuota", "other"): admins(200),
    ("getQuota", "missing"): admins(404),
    ("setQuota", "own"): admins(200),
    ("setQuota", "other"): admins(200),
    ("setQuota", "missing"): admins(404),
    # Of those who have no good token "own" is another's, and private content is nobody else's: not even an admin's.
    ("getContent", "own"): (404, 401, 200, 200, 200),
    ("getContent", "other"): (404, 401, 404, 404, 404),
    ("getContent", "missing"): (404, 401, 404, 404, 404),
    ("getThumbnail", "own"): (404, 401, 200, 200, 200),
    ("getThumbnail", "other"): (404, 401, 404, 404, 404),
    ("getThumbnail", "missing"): (404, 401, 404, 404, 404),
    ("signUrl", "own"): signed_in(200),
    ("signUrl", "other"): signed_in(404),
    ("signUrl", "missing"): signed_in(404),
    ("createShare", "own"): signed_in(201),
    ("createShare", "other"): signed_in(404),
    ("createShare", "missing"): signed_in(404),
    ("listShares", "own"): signed_in(200),
    ("listShares", "other"): signed_in(404),
    ("listShares", "missing"): signed_in(404),
    ("revokeShare", "own"): signed_in(204),
    ("revokeShare", "other"): signed_in(404),
    ("revokeShare", "missing"): signed_in(404),
    ("getSharedContent", "own"): everybody(200),
    ("getSharedContent", "other"): everybody(200),
    ("getSharedContent", "missing"): everybody(404),
    ("listPrices", "-"): (200, 401, 200, 200, 200),
    ("createPrice", "-"): admins(201),
    # Everybody's prices are one list, so all are one's own.
    ("getPrice", "own"): (200, 401, 200, 200, 200),
    ("getPrice", "other"): (200, 401, 200, 200, 200),
    ("getPrice", "missing"): (404, 401, 404, 404, 404),
    ("updatePrice", "own"): admins(200),
    ("updatePrice", "other"): admins(200),
    ("updatePrice", "missing"): admins(404),
    ("getPaymentsConfig", "-"): signed_in(200),
    ("createPayment", "-"): signed_in(201),
    ("listPayments", "-"): signed_in(200),
    ("getPayment", "own"): signed_in(200),
    ("getPayment", "other"): (401, 401, 404, 200, 200),
    ("getPayment", "missing"): signed_in(404),
    ("getClientSecret", "own"): signed_in(200),
    ("getClientSecret", "other"): signed_in(404),
    ("getClientSecret", "missing"): signed_in(404),
    ("cancelPayment", "own"): signed_in(200),
    ("cancelPayment", "other"): (401, 401, 404, 200, 200),
    ("cancelPayment", "missing"): signed_in(404),
    ("capturePayment", "own"): staff(200),
    ("capturePayment", "other"): staff(200),
    ("capturePayment", "missing"): staff(404),
    ("createRefund", "own"): staff(201),
    ("createRefund", "other"): staff(201),
    ("createRefund", "missing"): staff(404),
    ("listRefunds", "own"): signed_in(200),
    ("listRefunds", "other"): (401, 401, 404, 200, 200),
    ("listRefunds", "missing"): signed_in(404),
    ("getReceipt", "own"): signed_in(200),
    ("getReceipt", "other"): (401, 401, 404, 200, 200),
    ("getReceipt", "missing"): signed_in(404),
    ("getTimeline", "own"): staff(200),
    ("getTimeline", "other"): staff(200),
    ("getTimeline", "missing"): staff(404),
    ("listDisputes", "-"): staff(200),
    ("listEvents", "-"): staff(200),
    # What the sandbox sent of the payment was processed at once.
    ("retryEvent", "own"): staff(409),
    ("retryEvent", "other"): staff(409),
    ("retryEvent", "missing"): staff(404),
    # The servers of these tests have the sandbox; and what is sent here is not signed.
    ("receiveStripeWebhook", "-"): everybody(404),
    ("receiveSandboxWebhook", "-"): everybody(400),
    ("listLedgerEntries", "-"): staff(200),
    ("listBalances", "-"): staff(200),
    ("exportLedger", "-"): staff(200),
    ("listPaymentMethods", "-"): everybody(200),
    # The client secret says who is paying; the example of the document is nobody's.
    ("confirmPaymentIntent", "own"): everybody(401),
    ("confirmPaymentIntent", "other"): everybody(401),
    ("confirmPaymentIntent", "missing"): everybody(401),
    ("showAuthentication", "own"): everybody(422),
    ("showAuthentication", "other"): everybody(422),
    ("showAuthentication", "missing"): everybody(422),
    ("authenticatePaymentIntent", "own"): everybody(401),
    ("authenticatePaymentIntent", "other"): everybody(401),
    ("authenticatePaymentIntent", "missing"): everybody(401),
    ("setFault", "-"): admins(204),
    ("advance", "-"): admins(200),
}
# What these answer with is no JSON.
CONTENT = {"getContent", "getThumbnail", "getSharedContent", "exportLedger"}
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
        """Return a caller with a live session; the anonymous one has no token, the deactivated a dead one."""
        player = self.players[who]
        if who in {"anonymous", "deactivated"}:
            return player
        if for_the_last_time:
            return self.invite(who)
        # What was tried before may have ended it.
        if player.api.get("/v1/users/me").status_code == 401:
            self.players[who] = log_in(self.server, player.email)
        return self.players[who]


@pytest.fixture(scope="module")
def cast(anonymous: Api, admin: Account, invite: Callable[[str], Account]) -> Cast:
    """Everybody."""
    players = {role: invite(role) for role in ("user", "staff", "admin")}
    players["deactivated"] = invite("user")
    response = admin.api.patch(f"/v1/users/{players['deactivated'].id}", json={"is_active": False})
    assert response.status_code == 200
    players["anonymous"] = Account(str(uuid4()), "", anonymous, "")
    return Cast(anonymous, admin, invite, players)


def owner_of(cast: Cast, caller: Account, target: str) -> Account:
    """Whose object is tried: the caller's own, or another's that the caller may do most with."""
    can_own = caller not in {cast.players["anonymous"], cast.players["deactivated"]}
    return caller if target == "own" and can_own else cast.director


def user_id(cast: Cast, caller: Account, target: str) -> str:
    if target == "own":
        return caller.id
    response = cast.director.api.post("/v1/users", json={"email": new_address(), "role": "user"})
    return str(response.json()["data"]["id"])


def session_id(cast: Cast, caller: Account, target: str) -> str:
    return str(claims_of(owner_of(cast, caller, target).access_token)["sid"])


def file_id(cast: Cast, caller: Account, target: str) -> str:
    body = {"file": ("red.png", picture("PNG"), "image/png")}
    response = owner_of(cast, caller, target).api.post("/v1/files", files=body)
    return str(response.json()["data"]["id"])


def share(cast: Cast, caller: Account, target: str) -> tuple[str, dict[str, Any]]:
    """A new file and a link to it."""
    found = file_id(cast, caller, target)
    response = owner_of(cast, caller, target).api.post(f"/v1/files/{found}/shares", json={})
    return found, response.json()["data"]


def share_of_file(cast: Cast, caller: Account, target: str) -> str:
    found, made = share(cast, caller, target)
    return f"{found}/shares/{made['id']}"


def token(cast: Cast, caller: Account, target: str) -> str:
    _, made = share(cast, caller, target)
    return str(made["url"]).rpartition("/")[2]


def payment_id(cast: Cast, caller: Account, target: str) -> str:
    return str(make_payment(owner_of(cast, caller, target), price_of(cast.director))["id"])


def authorised(cast: Cast, caller: Account, target: str) -> str:
    owner = owner_of(cast, caller, target)
    return str(pay(owner, make_payment(owner, price_of(cast.director), capture_method="manual"))["id"])


def paid(cast: Cast, caller: Account, target: str) -> str:
    owner = owner_of(cast, caller, target)
    return str(pay(owner, make_payment(owner, price_of(cast.director)))["id"])


def event_id(cast: Cast, caller: Account, target: str) -> str:
    def processed() -> str | None:
        page = cast.director.api.get("/v1/payments/events?status=processed&limit=1").json()
        return str(page["data"][0]["id"]) if page["data"] else None

    paid(cast, caller, target)
    return eventually(processed, "an event was processed")


# How to find the object of a path. The longest names come first.
OBJECTS: dict[str, Callable[[Cast, Account, str], str]] = {
    "{user_id}": user_id,
    "{session_id}": session_id,
    "{file_id}/shares/{share_id}": share_of_file,
    "{file_id}": file_id,
    "{token}": token,
    "{price_id}": lambda cast, *_: price_of(cast.director),
    "{payment_id}/capture": lambda *who: f"{authorised(*who)}/capture",
    "{payment_id}/refunds": lambda *who: f"{paid(*who)}/refunds",
    "{payment_id}/receipt": lambda *who: f"{paid(*who)}/receipt",
    "{payment_id}": payment_id,
    "{event_id}": event_id,
    "{ref}": lambda *_: "pi_sbx_missing",
}
# Bodies that succeed, where the example of the document does not.
PRICES: list[str] = []
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
    "createPayment": lambda _: {"price_id": PRICES[0]},
    "createPrice": lambda _: {"name": "Lesson", "currency": "EUR", "unit_amount": 1250},
    "updatePrice": lambda _: {"name": "Changed"},
    "capturePayment": lambda _: {},
    "createRefund": lambda _: {"amount": 1},
    "setFault": lambda _: {"fault": "http_500", "count": 0},
}


@pytest.fixture(scope="module")
def operations(anonymous: Api) -> dict[str, Operation]:
    """The operations of the document by id."""
    return {operation.id: operation for operation in read_operations(anonymous)}


def attempt(cast: Cast, operation: Operation, target: str, who: str) -> Response:
    caller = cast.enter(who, for_the_last_time=(operation.id, target) in LAST_ACTS)
    path = operation.path
    for name, find in OBJECTS.items():
        if name in path:
            found = re.sub("{[^}]*}", str(uuid4()), name) if target == "missing" else find(cast, caller, target)
            path = path.replace(name, found)
    PRICES[:] = [price_of(cast.director)]
    body = good_request(operation)
    if operation.id in BODIES:
        # Whoever has no account of their own signs in to another's.
        person = caller if who not in {"anonymous", "deactivated"} else cast.players["user"]
        body = {"json": BODIES[operation.id](person), "headers": new_key(operation)}
    token = caller.refresh_token if operation.security == ("refresh",) else caller.api.token
    if operation.method == "GET":
        head = cast.server.request("HEAD", path, token=token)
        response = cast.server.get(path, token=token)
        assert head.status_code == response.status_code, f"HEAD of {path} answers otherwise than GET"
        return response
    return cast.server.request(operation.method, path, token=token, **body)


def elsewhere(cast: Cast, operation_id: str, status: int) -> int:
    """What is answered where files are in a bucket: uploads may go straight there."""
    refused = operation_id == "startDirectUpload" and status == 409
    return 201 if refused and cast.director.api.get("/v1/files/config").json()["data"]["direct_upload"] else status


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
    expected = tuple(elsewhere(cast, operation_id, status) for status in TABLE[operation_id, target])
    answers = [attempt(cast, operation, target, who) for who in CALLERS]
    assert tuple(answer.status_code for answer in answers) == expected
    for answer in answers:
        assert answer.status_code in operation.statuses
        assert answer.headers["RateLimit-Policy"]
        assert answer.headers["RateLimit"]
        if answer.status_code == 201:
            found = cast.director.api.get(answer.headers["Location"])
            # A link is seen in the list of its file; where it is, it can only be revoked.
            assert found.status_code == (405 if operation_id == "createShare" else 200)
        if answer.status_code == 204:
            assert answer.content == b""
            assert "Content-Type" not in answer.headers
        elif answer.status_code < 300 and operation_id not in CONTENT:
            assert set(answer.json()) <= {"data", "meta"}
            assert "data" in answer.json()
