"""W1, W2 and W3: who asks, and which requests they are made of."""

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import jwt

from bench.contenders import SECRET, Server
from bench.load import Request
from bench.seed import STAFF_EVERY, seeded_ids

CALLERS = 1000
# Each of so many members of staff reads so many pages.
READERS, PAGES = 10, 10
PAGE_SIZE = 50
HOUR = 3600
SHARE = {"expires_in": 86_400, "max_downloads": 10, "label": "for Ben"}


class UnequalError(RuntimeError):
    """A contender does not do what the others do, so it cannot be compared with them."""


@dataclass(frozen=True)
class Answer:
    """The status and the parsed body of an answer."""

    status: int
    body: Any


@dataclass(frozen=True)
class Callers:
    """Accounts that have a session and a file, and good tokens of theirs."""

    tokens: list[str]
    staff: list[str]
    files: list[str]


def make_callers(database_url: str, rows: int) -> Callers:
    """Return the callers of a database; their tokens are signed here, since signing in is measured elsewhere."""
    count = min(CALLERS, rows)
    users = seeded_ids(database_url, "user", count)
    sessions = seeded_ids(database_url, "session", count)
    roles = ["staff" if number % STAFF_EVERY == 0 else "user" for number in range(1, count + 1)]
    tokens = [make_token(*claims) for claims in zip(users, sessions, roles, strict=True)]
    staff = [token for token, role in zip(tokens, roles, strict=True) if role == "staff"]
    return Callers(tokens, staff[:READERS], seeded_ids(database_url, "file", count))


def make_token(user_id: str, session_id: str, role: str) -> str:
    """Return an access token such as the product issues; the peers read what they need of it."""
    now = int(time.time())
    claims = {
        "iss": "project",
        "aud": "project-api",
        "sub": user_id,
        "sid": session_id,
        "role": role,
        "type": "access",
        "fresh": False,
        "iat": now,
        "exp": now + 12 * HOUR,
        "jti": str(uuid4()),
    }
    return jwt.encode(claims, SECRET, algorithm="HS256", headers={"kid": "bench"})


def ask(server: Server, request: Request) -> Answer:
    """Send one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Accept": "application/json"}
    if request.token:
        headers["Authorization"] = f"Bearer {request.token}"
    if request.body:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(request.method, request.path, request.body or None, headers)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    try:
        return Answer(response.status, json.loads(data) if data else None)
    except ValueError as error:
        raise UnequalError(f"{server.contender.key} answers {request.path} with {data[:200]!r}") from error


def read_me(_server: Server, callers: Callers) -> list[Request]:
    """W1: everybody reads their own account."""
    return [Request("GET", "/v1/users/me", token) for token in callers.tokens]


def list_users(server: Server, callers: Callers) -> list[Request]:
    """W2: staff read pages of accounts; cursors differ, so each contender is walked through once."""
    return [request for token in callers.staff for request in walk(server, token, "/v1/users?", PAGES)]


def walk(server: Server, token: str, path: str, pages: int) -> list[Request]:
    """Return the requests for so many pages after the first."""
    requests: list[Request] = []
    cursor = _next(server, Request("GET", f"{path}limit={PAGE_SIZE}", token))
    while len(requests) < pages:
        request = Request("GET", f"{path}limit={PAGE_SIZE}&cursor={quote(cursor)}", token)
        requests.append(request)
        cursor = _next(server, request)
    return requests


def _next(server: Server, request: Request) -> str:
    answer = ask(server, request)
    cursor = answer.body.get("meta", {}).get("next_cursor") if answer.status == http.client.OK else None
    if not cursor:
        raise UnequalError(f"{server.contender.key} has no page after {request.path}: {answer}")
    return str(cursor)


def share_files(_server: Server, callers: Callers) -> list[Request]:
    """W3: everybody makes links to their file."""
    body = json.dumps(SHARE)
    pairs = zip(callers.files, callers.tokens, strict=True)
    return [Request("POST", f"/v1/files/{file_id}/shares", token, body) for file_id, token in pairs]


@dataclass(frozen=True)
class Workload:
    """One of the three; `requests` are what is sent in turn."""

    key: str
    title: str
    requests: Callable[[Server, Callers], list[Request]]


WORKLOADS = (
    Workload("w1", "GET /v1/users/me", read_me),
    Workload("w2", "GET /v1/users, 50 by keyset", list_users),
    Workload("w3", "POST /v1/files/{id}/shares, one row", share_files),
)
