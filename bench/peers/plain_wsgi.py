"""WSGI without a framework: what the interpreter, the driver and the database allow. Nobody should write one."""

import hashlib
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

import jwt
import orjson
import psycopg
from jwt.exceptions import InvalidTokenError
from psycopg.rows import dict_row

from bench.peers.common import (
    AUDIENCE,
    DATABASE_URL,
    DEFAULT_SECONDS,
    ISSUER,
    JWT_SECRET,
    MAX_SECONDS,
    PUBLIC_URL,
    STAFF,
    read_cursor,
    write_cursor,
)

StartResponse = Callable[[str, list[tuple[str, str]]], object]
Answer = tuple[str, list[tuple[str, str]], object]

COLUMNS = "id, email, name, role, is_active, email_verified, created_at, updated_at, last_login_at"
# Like the product, and unlike the other peers, it looks whether the session still lives.
CALLER = (
    f"SELECT {', '.join(f'u.{name.strip()}' for name in COLUMNS.split(','))} FROM sessions s"
    " JOIN users u ON u.id = s.user_id WHERE s.id = %s AND u.id = %s AND s.revoked_at IS NULL"
    " AND s.expires_at > now() AND s.epoch = u.session_epoch AND u.is_active"
)
PAGE = f"SELECT {COLUMNS} FROM users WHERE erased_at IS NULL ORDER BY created_at DESC, id DESC LIMIT %s"
NEXT_PAGE = (
    f"SELECT {COLUMNS} FROM users WHERE erased_at IS NULL AND (created_at, id) < (%s, %s)"
    " ORDER BY created_at DESC, id DESC LIMIT %s"
)
FILE = "SELECT id FROM files WHERE id = %s AND owner_id = %s AND status <> 'deleting'"
INSERT = (
    "INSERT INTO share_links"
    " (id, file_id, token_sha256, label, expires_at, max_downloads, downloads, created_at, updated_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, 0, %s, %s)"
    " RETURNING id, expires_at, max_downloads, downloads, label, created_at"
)
SHARES = re.compile(r"/v1/files/([0-9a-f-]{36})/shares")
JSON = ("Content-Type", "application/json")
_local = threading.local()


class Refused(Exception):
    """The request is not answered with what it asked for."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request."""
    try:
        status, headers, answer = _answer(environ)
    except Refused as refusal:
        status, headers, answer = refusal.status, [], {"error": refusal.status}
    body = orjson.dumps(answer, option=orjson.OPT_UTC_Z)
    start_response(status, [JSON, ("Content-Length", str(len(body))), *headers])
    return [body]


def _answer(environ: dict[str, Any]) -> Answer:
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if path == "/readyz":
        _fetch("SELECT 1 AS one")
        return "200 OK", [], {"status": "ready"}
    if method == "GET" and path == "/v1/users/me":
        return "200 OK", [], {"data": _caller(environ)}
    if method == "GET" and path == "/v1/users":
        return _list_users(environ)
    match = SHARES.fullmatch(path)
    if method == "POST" and match:
        return _create_share(environ, UUID(match[1]))
    raise Refused("404 Not Found")


def _fetch(query: str, *values: object) -> list[dict[str, Any]]:
    """Run a statement on this thread's connection, prepared the first time and binary."""
    connection = getattr(_local, "connection", None)
    if connection is None:
        connection = _local.connection = psycopg.connect(
            DATABASE_URL, autocommit=True, prepare_threshold=0, row_factory=dict_row
        )
    return connection.execute(query, values, binary=True).fetchall()


def _caller(environ: dict[str, Any]) -> dict[str, Any]:
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    try:
        claims = jwt.decode(token, JWT_SECRET, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER)
    except InvalidTokenError as error:
        raise Refused("401 Unauthorized") from error
    found = _fetch(CALLER, UUID(claims["sid"]), UUID(claims["sub"]))
    if scheme.lower() != "bearer" or not found:
        raise Refused("401 Unauthorized")
    return found[0]


def _list_users(environ: dict[str, Any]) -> Answer:
    if _caller(environ)["role"] not in STAFF:
        raise Refused("403 Forbidden")
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    try:
        limit = int(query.get("limit", 20))
        begin = read_cursor(query["cursor"]) if "cursor" in query else None
    except ValueError as error:
        raise Refused("400 Bad Request") from error
    if not 1 <= limit <= 100:
        raise Refused("422 Unprocessable Content")
    found = _fetch(NEXT_PAGE, *begin, limit + 1) if begin else _fetch(PAGE, limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    next_cursor = write_cursor(last["created_at"], last["id"]) if last else None
    return "200 OK", [], {"data": found[:limit], "meta": {"limit": limit, "next_cursor": next_cursor}}


def _create_share(environ: dict[str, Any], file_id: UUID) -> Answer:
    caller = _caller(environ)
    seconds, downloads, label = _read_share(environ)
    if not _fetch(FILE, file_id, caller["id"]):
        raise Refused("404 Not Found")
    token, now = secrets.token_urlsafe(32), datetime.now(UTC)
    token_sha256 = hashlib.sha256(token.encode()).hexdigest()
    values = (uuid4(), file_id, token_sha256, label, now + timedelta(seconds=seconds), downloads, now, now)
    link = {**_fetch(INSERT, *values)[0], "url": f"{PUBLIC_URL}/v1/shares/{token}"}
    return "201 Created", [("Location", f"/v1/files/{file_id}/shares/{link['id']}")], {"data": link}


def _read_share(environ: dict[str, Any]) -> tuple[int, int | None, str | None]:
    try:
        body = orjson.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    except ValueError as error:
        raise Refused("400 Bad Request") from error
    seconds, downloads, label = body.get("expires_in", DEFAULT_SECONDS), body.get("max_downloads"), body.get("label")
    valid = (
        type(seconds) is int
        and 1 <= seconds <= MAX_SECONDS
        and (downloads is None or (type(downloads) is int and downloads >= 1))
        and (label is None or (type(label) is str and 1 <= len(label) <= 100))
    )
    if not valid:
        raise Refused("422 Unprocessable Content")
    return seconds, downloads, label
