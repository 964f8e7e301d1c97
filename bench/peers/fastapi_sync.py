"""FastAPI with SQLModel in threads, in the manner of its full-stack template."""

import hashlib
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import jwt
from fastapi import Depends, FastAPI, HTTPException, Query, Response, status
from fastapi.security import OAuth2PasswordBearer
from jwt.exceptions import InvalidTokenError
from sqlalchemy import DateTime
from sqlmodel import Field, Session, SQLModel, col, create_engine, select, text, tuple_

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

# The template has the pool as it comes: 5 connections and 10 more when they are needed, in each process.
engine = create_engine(DATABASE_URL.replace("postgresql://", "postgresql+psycopg://", 1))
app = FastAPI(title="FastAPI, sync")


class UserPublic(SQLModel):
    """An account as it is shown."""

    id: UUID = Field(primary_key=True)
    email: str | None
    name: str | None
    role: str
    is_active: bool
    email_verified: bool
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(sa_type=DateTime(timezone=True))
    last_login_at: datetime | None = Field(sa_type=DateTime(timezone=True))


class User(UserPublic, table=True):
    """An account."""

    __tablename__ = "users"
    password_hash: str | None
    erased_at: datetime | None = Field(sa_type=DateTime(timezone=True))


class File(SQLModel, table=True):
    """A file, as far as it matters to a link."""

    __tablename__ = "files"
    id: UUID = Field(primary_key=True)
    owner_id: UUID
    status: str


class ShareCreate(SQLModel):
    """How long and how often a link may be used."""

    expires_in: int = Field(default=DEFAULT_SECONDS, ge=1, le=MAX_SECONDS)
    max_downloads: int | None = Field(default=None, ge=1)
    label: str | None = Field(default=None, min_length=1, max_length=100)


class SharePublic(SQLModel):
    """A link as it is shown."""

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    expires_at: datetime = Field(sa_type=DateTime(timezone=True))
    max_downloads: int | None
    downloads: int = 0
    label: str | None
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC), sa_type=DateTime(timezone=True))


class ShareLink(SharePublic, table=True):
    """A link to a file."""

    __tablename__ = "share_links"
    file_id: UUID
    token_sha256: str
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC), sa_type=DateTime(timezone=True))


class NewShare(SharePublic):
    """A link with its address, which is shown once."""

    url: str


class UserAnswer(SQLModel):
    """The answer with one account."""

    data: UserPublic


class PageMeta(SQLModel):
    """Where a page ends."""

    limit: int
    next_cursor: str | None


class UsersAnswer(SQLModel):
    """The answer with a page of accounts."""

    data: list[UserPublic]
    meta: PageMeta


class ShareAnswer(SQLModel):
    """The answer with a new link."""

    data: NewShare


def get_db() -> Iterator[Session]:
    """Give a session for the length of a request."""
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_db)]
TokenDep = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="/v1/auth/login"))]


def get_current_user(session: SessionDep, token: TokenDep) -> User:
    """Verify the token and load its account."""
    try:
        payload = jwt.decode(token, JWT_SECRET, algorithms=["HS256"], audience=AUDIENCE, issuer=ISSUER)
    except InvalidTokenError as error:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Could not validate credentials") from error
    user = session.get(User, UUID(payload["sub"]))
    if user is None or not user.is_active:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "Inactive user")
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]


def get_staff(user: CurrentUser) -> User:
    """Let only staff pass."""
    if user.role not in STAFF:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "Not enough privileges")
    return user


@app.get("/readyz")
def readyz(session: SessionDep) -> dict[str, str]:
    """Say whether the database answers."""
    session.exec(text("SELECT 1"))
    return {"status": "ready"}


@app.get("/v1/users/me", response_model=UserAnswer)
def get_me(user: CurrentUser) -> Any:
    """Show one's own account."""
    return {"data": user}


@app.get("/v1/users", response_model=UsersAnswer, dependencies=[Depends(get_staff)])
def list_users(session: SessionDep, limit: Annotated[int, Query(ge=1, le=100)] = 20, cursor: str | None = None) -> Any:
    """List the accounts, newest first."""
    statement = select(User).where(col(User.erased_at).is_(None))
    if cursor is not None:
        try:
            statement = statement.where(tuple_(User.created_at, User.id) < read_cursor(cursor))
        except ValueError as error:
            raise HTTPException(status.HTTP_400_BAD_REQUEST, "Bad cursor") from error
    statement = statement.order_by(col(User.created_at).desc(), col(User.id).desc())
    users = session.exec(statement.limit(limit + 1)).all()
    last = users[limit - 1] if len(users) > limit else None
    next_cursor = write_cursor(last.created_at, last.id) if last else None
    return {"data": users[:limit], "meta": {"limit": limit, "next_cursor": next_cursor}}


@app.post("/v1/files/{file_id}/shares", response_model=ShareAnswer, status_code=status.HTTP_201_CREATED)
def create_share(session: SessionDep, user: CurrentUser, file_id: UUID, share: ShareCreate, response: Response) -> Any:
    """Make a link to a file of one's own."""
    file = session.exec(select(File).where(File.id == file_id, File.owner_id == user.id)).first()
    if file is None or file.status == "deleting":
        raise HTTPException(status.HTTP_404_NOT_FOUND, "File not found")
    token = secrets.token_urlsafe(32)
    link = ShareLink(
        file_id=file.id,
        token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        expires_at=datetime.now(UTC) + timedelta(seconds=share.expires_in),
        max_downloads=share.max_downloads,
        label=share.label,
    )
    session.add(link)
    session.commit()
    session.refresh(link)
    response.headers["Location"] = f"/v1/files/{file_id}/shares/{link.id}"
    return {"data": {**link.model_dump(), "url": f"{PUBLIC_URL}/v1/shares/{token}"}}
