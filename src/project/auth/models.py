"""Sessions, one-time links, and the networks an account has signed in from."""

from datetime import datetime
from enum import StrEnum
from typing import cast
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, Table
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Base, Record
from project.email_addresses import MAX_EMAIL_LENGTH


class Session(Record):
    """One sign-in and its chain of refresh tokens; the authority that tokens point at.

    The live refresh token is kept as its claims, not as text: HS256 is deterministic, so a lost answer is given
    again by encoding the same claims. `created_at` is the sign-in, `expires_at` its absolute end.
    """

    __tablename__ = "sessions"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    epoch: Mapped[int]
    expires_at: Mapped[datetime]
    last_used_at: Mapped[datetime]
    ip: Mapped[str | None] = mapped_column(String(45))
    user_agent: Mapped[str | None] = mapped_column(String(255))
    refresh_jti: Mapped[UUID]
    refresh_issued_at: Mapped[datetime]
    refresh_expires_at: Mapped[datetime]
    previous_jti: Mapped[UUID | None]
    rotated_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    revoked_reason: Mapped[str | None] = mapped_column(String(32))

    # Not a column: lists set it on the session that asks.
    current = False

    __table_args__ = (
        Index("ix_sessions_user_id_created_at", "user_id", "created_at", "id"),
        Index("ix_sessions_expires_at", "expires_at"),
    )


class LinkPurpose(StrEnum):
    """What a one-time link is for."""

    VERIFY_EMAIL = "verify_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - the name of a purpose
    INVITATION = "invitation"
    CONFIRM_EMAIL = "confirm_email"


class Link(Record):
    """A one-time link that was mailed. Only the token's SHA-256 is stored; using it deletes the row.

    `password_hash` is the password that a verification confirms, `email` the address that a change is to.
    """

    __tablename__ = "links"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[LinkPurpose]
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    password_hash: Mapped[str | None] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(MAX_EMAIL_LENGTH))


class KnownNetwork(Base):
    """A network that an account signed in from; its sign-in budget is apart from that of strangers."""

    __tablename__ = "known_networks"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    network: Mapped[str] = mapped_column(String(49), primary_key=True)
    last_login_at: Mapped[datetime] = mapped_column(index=True)


# The table, for statements that read rows.
SESSIONS = cast(Table, Session.__table__)

SESSION_SORTS = {"created_at": Session.created_at, "last_used_at": Session.last_used_at}
