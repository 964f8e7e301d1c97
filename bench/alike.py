"""Whether everybody answers alike: looked at before anything is measured, so that nobody is measured at doing less."""

import http.client
import json
import re
from typing import Any

from bench.contenders import Server
from bench.load import Request
from bench.workloads import PAGE_SIZE, SHARE, Answer, Callers, UnequalError, ask, walk

# What has to be there, and cannot be equal: what it is replaced with before answers are compared.
_VARYING = {"id", "url", "created_at", "expires_at", "next_cursor"}
_SHAPES = {
    "id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "url": re.compile(r"http://127\.0\.0\.1:\d+/v1/shares/[\w-]{20,}"),
    "time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"),
    "cursor": re.compile(r"\S{20,}"),
}
# Some say 400 to what does not validate, 422 others.
_STATUS = {
    "own account": {200},
    "no token": {401},
    "altered token": {401},
    "first page": {200},
    "second page": {200},
    "page, not staff": {403},
    "new link": {201},
    "invalid link": {400, 422},
    "link to another's file": {404},
}


def check_alike(servers: list[Server], callers: Callers) -> None:
    """Ask everybody the same and compare the answers with ours.

    Raises:
        UnequalError: an answer differs in more than what has to.
    """
    expected = _answers(servers[0], callers)
    for name, answer in expected.items():
        wanted = _STATUS[name]
        if answer.status not in wanted:
            raise UnequalError(f"{name} is answered with {answer}")
    for server in servers[1:]:
        for name, answer in _answers(server, callers).items():
            compare(f"{server.contender.key}, {name}", answer, expected[name], refused=_STATUS[name])


def _answers(server: Server, callers: Callers) -> dict[str, Answer]:
    user, staff, own, other = callers.tokens[0], callers.staff[0], callers.files[0], callers.files[1]
    page = f"/v1/users?limit={PAGE_SIZE}"
    altered = user[:-8] + user[-8:][::-1]
    requests = {
        "own account": Request("GET", "/v1/users/me", user),
        "no token": Request("GET", "/v1/users/me"),
        "altered token": Request("GET", "/v1/users/me", altered),
        "first page": Request("GET", page, staff),
        "second page": walk(server, staff, "/v1/users?", 1)[0],
        "page, not staff": Request("GET", page, user),
        "new link": Request("POST", f"/v1/files/{own}/shares", user, json.dumps(SHARE)),
        "invalid link": Request("POST", f"/v1/files/{own}/shares", user, json.dumps({**SHARE, "max_downloads": 0})),
        "link to another's file": Request("POST", f"/v1/files/{other}/shares", user, json.dumps(SHARE)),
    }
    return {name: ask(server, request) for name, request in requests.items()}


def compare(name: str, answer: Answer, expected: Answer, *, refused: set[int]) -> None:
    """Compare the answer of a contender with the one that is expected.

    Raises:
        UnequalError: they differ. Refusals only have to be refusals of that kind.
    """
    is_refusal = expected.status >= http.client.BAD_REQUEST
    if answer.status not in refused or (not is_refusal and _constant(answer.body) != _constant(expected.body)):
        raise UnequalError(f"{name}: expected {expected}, got {answer}")


def _constant(body: Any) -> Any:
    """Return a body with what differs from answer to answer replaced by what it looks like."""
    if not isinstance(body, dict) or "data" not in body:
        return body
    data = body["data"]
    if isinstance(data, dict) and "url" in data:
        data = {name: _shape(value) if name in _VARYING else value for name, value in data.items()}
    meta = body.get("meta")
    if isinstance(meta, dict):
        meta = {name: _shape(value) if name in _VARYING else value for name, value in meta.items()}
    return {**body, "data": data, "meta": meta}


def _shape(value: object) -> object:
    return next((name for name, shape in _SHAPES.items() if shape.fullmatch(str(value))), value)
