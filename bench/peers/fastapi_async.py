"""FastAPI on the event loop with asyncpg and its prepared statements, without an ORM: the fast way to use it."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import jwt
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, status
from fastapi.security import OAuth2PasswordBearer
from jwt.exceptions import InvalidTokenError
from pydantic import BaseModel, Field

from bench.peers.common import (
    AUDIENCE,
    DATABASE_URL,
    DEFAULT_SECONDS,
    ISSUER,
    JWT_SECRET,
    MAX_SECONDS,
    POOL_SIZE,
    PUBLIC_URL,
    STAFF,
    read_cursor,
    write_cursor,
)

COLUMNS = "id, email, name, role, is_active, email_verified, created_at, updated_at, last_login_at"
USER = f"SELECT {COLUMNS} FROM users WHERE id = $1"
PAGE = f"SELECT {COLUMNS} FROM users WHERE erased_at IS NULL ORDER BY created_at DESC, id DESC LIMIT $1"
NEXT_PAGE = (
    f"SELECT {COLUMNS} FROM users WHERE erased_at IS NULL AND (created_at, id) < ($2, $3)"
    " ORDER BY created_at DESC, id DESC LIMIT $1"
)
FILE = "SELECT id FROM files WHERE id = $1 AND owner_id = $2 AND status <> 'deleting'"
INSERT = (
    "INSERT INTO share_links"
    " (id, file_id, token_sha256, label, expires_at, max_downloads, downloads, created_at, updated_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $7)"
    " RETURNING id, expires_at, max_downloads, downloads, label, created_at"
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the pool while the process serves."""
    async with asyncpg.create_pool(DATABASE_URL, min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:
        app.state.pool = pool
        yield


app = FastAPI(title="FastAPI, async", lifespan=lifespan)


class UserPublic(BaseModel):
    """An account as it is shown."""

    id: UUID
    email: str | None
    name: str | None
    role: str
    is_active: bool
    email_verified: bool
    created_at: datetime
    updated_at: datetime
    last_login_at: datetime | None


class ShareCreate(BaseModel):
    """How long and how often a link may be used."""

    expires_in: int = Field(default=DEFAULT_SECONDS, ge=1, le=MAX_SECONDS)
    max_downloads: int | None = Field(default=None, ge=1)
    label: str | None = Field(default=None, min_length=1, max_length=100)


class NewShare(BaseModel):
    """A link with its address, which is shown once."""

    id: UUID
    expires_at: datetime
    max_downloads: int | None
    downloads: int
    label: str | None
    created_at: datetime
    url: str


class UserAnswer(BaseModel):
    """The answer with one account."""

    data: UserPublic


class PageMeta(BaseModel):
    """Where a page ends."""

    limit: int
    next_cursor: str | None


class UsersAnswer(BaseModel):
    """The answer with a page of accounts."""

    data: list[UserPublic]
    meta: PageMeta


class ShareAnswer(BaseModel):
    """The answer with a new link."""

    data: NewShare


async def get_connection(request: Request) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection for the length of a request."""
    async with request.app.state.pool.acquire() as connection:
        yield connection


Connection = Annotated[asyncpg.Connection, Depends(get_connection)]
TokenDep = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="/v1/auth/login"))]


async def get_current_user(connection: Connection, token: TokenDep) -> asyncpg.Record:
    """Verify the token and load its account."""
    try:
        payload = jwt.decode(token, JWT_SECRET, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER)
    except InvalidTokenError as error:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Could not validate credentials") from error
    user = await connection.fetchrow(USER, UUID(payload["sub"]))
    if user is None or not user["is_active"]:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Inactive user")
    return user


CurrentUser = Annotated[asyncpg.Record, Depends(get_current_user)]


async def get_staff(user: CurrentUser) -> asyncpg.Record:
    """Let only staff pass."""
    if user["role"] not in STAFF:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "Not enough privileges")
    return user


@app.get("/readyz")
async def readyz(connection: Connection) -> dict[str, str]:
    """Say whether the database answers."""
    await connection.fetchval("SELECT 1")
    return {"status": "ready"}


@app.get("/v1/users/me", response_model=UserAnswer)
async def get_me(user: CurrentUser) -> Any:
    """Show one's own account."""
    return {"data": dict(user)}


@app.get("/v1/users", response_model=UsersAnswer, dependencies=[Depends(get_staff)])
async def list_users(
    connection: Connection, limit: Annotated[int, Query(ge=1, le=100)] = 20, cursor: str | None = None
) -> Any:
    """List the accounts, newest first."""
    try:
        found = await connection.fetch(*(NEXT_PAGE, limit + 1, *read_cursor(cursor)) if cursor else (PAGE, limit + 1))
    except ValueError as error:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "Bad cursor") from error
    last = found[limit - 1] if len(found) > limit else None
    next_cursor = write_cursor(last["created_at"], last["id"]) if last else None
    users = [dict(user) for user in found[:limit]]
    return {"data": users, "meta": {"limit": limit, "next_cursor": next_cursor}}


@app.post("/v1/files/{file_id}/shares", response_model=ShareAnswer, status_code=status.HTTP_201_CREATED)
async def create_share(
    connection: Connection, user: CurrentUser, file_id: UUID, share: ShareCreate, response: Response
) -> Any:
    """Make a link to a file of one's own."""
    if await connection.fetchval(FILE, file_id, user["id"]) is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "File not found")
    token, now = secrets.token_urlsafe(32), datetime.now(UTC)
    link = await connection.fetchrow(
        INSERT,
        uuid4(),
        file_id,
        hashlib.sha256(token.encode()).hexdigest(),
        share.label,
        now + timedelta(seconds=share.expires_in),
        share.max_downloads,
        now,
    )
    response.headers["Location"] = f"/v1/files/{file_id}/shares/{link['id']}"
    return {"data": {**dict(link), "url": f"{PUBLIC_URL}/v1/shares/{token}"}}
