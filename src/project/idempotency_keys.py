"""The table behind Idempotency-Key, and the guarded writes that let one request at a time hold a key.

Three transactions, so that none is open while a view works. What a kill -9 leaves behind each of them:

1. `claim` inserts the row. Killed after it: the row says in_progress and has no resource. A minute later one
   repetition takes it over and runs the request, which had no effect yet.
2. The service writes its effect and, by `attach`, the resource's id, in one transaction. Killed before its
   commit: as above. Killed after it: the row has a resource, which the one that takes over shows again.
3. `complete` stores the answer. Killed after it: repetitions get the stored answer.

Who is slower than a minute may have lost the key: then `locked_at` has changed, and `attach` undoes the effect.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    ColumnElement,
    Executable,
    Index,
    Row,
    String,
    and_,
    delete,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Base, db, run, transaction, utcnow
from project.errors import Conflict, FieldError, Invalid
from project.indexes import only

# Longer than a request takes, but for slow uploads: of those that run twice then, one becomes a file (`attach`).
LOCKED_FOR = timedelta(seconds=60)
KEPT_FOR = timedelta(hours=24)
PURGE_BATCH = 1000


class IdempotencyInProgress(Conflict):
    """409: the first request with this key has not been answered yet."""

    code = "idempotency_in_progress"
    message = "A request with this Idempotency-Key is still running."
    cure = "Repeat the request after the seconds in Retry-After."

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class IdempotencyKeyReused(Invalid):
    """422: the key was sent before, with another method, path or body."""

    code = "idempotency_key_reused"
    message = "This Idempotency-Key was used for another request."
    cure = "Send a new key with a new request; the same key only with the very same method, path and body."

    def __init__(self) -> None:
        super().__init__(errors=[FieldError("/header/Idempotency-Key", self.code, self.message)])


class State(StrEnum):
    """What a key is at: being worked on, free for a repetition after a failure of ours, or answered."""

    IN_PROGRESS = "in_progress"
    RETRYABLE = "retryable"
    COMPLETED = "completed"


class IdempotencyKey(Base):
    """A key of a user, the request it stands for, and the answer once there is one."""

    __tablename__ = "idempotency_keys"

    # No foreign key: accounts are never deleted, and a row lives for a day.
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    method: Mapped[str] = mapped_column(String(10))
    path: Mapped[str]
    fingerprint: Mapped[str] = mapped_column(String(64))  # SHA-256 in hexadecimal
    state: Mapped[State]
    resource_id: Mapped[UUID | None]
    response_status: Mapped[int | None]
    response_headers: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    response_body: Mapped[bytes | None]
    locked_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(index=True)

    __table_args__ = (Index("ix_idempotency_keys_resource_id", "resource_id", **only("resource_id IS NOT NULL")),)


@dataclass(frozen=True)
class Claim:
    """The right to run a request. `resource_id` is what an earlier holder had made before it failed."""

    user_id: UUID
    key: str
    locked_at: datetime
    resource_id: UUID | None = None

    def held(self) -> ColumnElement[bool]:
        """The condition of every later write: the key is still ours."""
        return and_(
            _is(self.user_id, self.key),
            IdempotencyKey.state == State.IN_PROGRESS,
            IdempotencyKey.locked_at == self.locked_at,
        )


@dataclass(frozen=True)
class Answer:
    """A stored response."""

    status: int
    headers: dict[str, str]
    body: bytes
    resource_id: UUID | None = None


_executing: ContextVar[Claim | None] = ContextVar("executing", default=None)


def claim(*, user_id: UUID, key: str, method: str, path: str, fingerprint: str) -> Claim | Answer:
    """Get the right to run a request, or the answer that it already had.

    Raises:
        IdempotencyKeyReused: the key stands for another request.
        IdempotencyInProgress: another request holds the key.
    """
    found = _find(user_id, key)
    if found is not None and found.created_at < utcnow() - KEPT_FOR:
        found = _expire(user_id, key, found)
    if found is None:
        now = utcnow()
        row = {"user_id": user_id, "key": key, "method": method, "path": path, "fingerprint": fingerprint}
        try:
            with transaction():
                db.session.execute(
                    insert(IdempotencyKey).values(**row, state=State.IN_PROGRESS, locked_at=now, created_at=now)
                )
            return Claim(user_id, key, now)
        except IntegrityError:
            found = _find(user_id, key)
    if found is None:
        # Another request took the key and was refused between our two looks. The client will come again.
        raise IdempotencyInProgress()
    if found.fingerprint != fingerprint:
        raise IdempotencyKeyReused()
    if found.state is State.COMPLETED:
        return Answer(found.response_status, found.response_headers, found.response_body, found.resource_id)
    return _take_over(user_id, key, found)


def attach(resource_id: UUID) -> None:
    """Note what the running request made, inside the transaction that makes it; without a key do nothing.

    Raises:
        IdempotencyInProgress: this request was too slow and another has taken the key over.
    """
    claimed = _executing.get()
    if claimed is None:
        return
    note = update(IdempotencyKey).where(claimed.held()).values(resource_id=resource_id)
    if db.session.scalar(note.returning(IdempotencyKey.key)) is None:
        raise IdempotencyInProgress()


def make(statement: Executable, resource_id: UUID, values: dict[str, Any]) -> bool:
    """Run the one INSERT … RETURNING that makes a resource, and tell whether it made one.

    With a key its note is written in the same transaction; without one the statement runs alone.

    Raises:
        IdempotencyInProgress: see `attach`.
    """
    if _executing.get() is None:
        return bool(run(statement, values))
    with transaction():
        made = bool(run(statement, values))
        if made:
            attach(resource_id)
    return made


@contextmanager
def executing(claimed: Claim) -> Iterator[None]:
    """Let `attach` know for which key the block works."""
    token = _executing.set(claimed)
    try:
        yield
    finally:
        _executing.reset(token)


def complete(claimed: Claim, answer: Answer) -> None:
    """Store the answer for repetitions, unless another request has taken the key over."""
    _write(
        claimed,
        state=State.COMPLETED,
        response_status=answer.status,
        response_headers=answer.headers,
        response_body=answer.body,
    )


def fail(claimed: Claim) -> None:
    """Leave the key to the next repetition: how far we got is what `resource_id` says."""
    _write(claimed, state=State.RETRYABLE)


def release(claimed: Claim) -> bool:
    """Free the key, also for another request, if nothing was made; tell whether it was freed."""
    unused = delete(IdempotencyKey).where(claimed.held(), IdempotencyKey.resource_id.is_(None))
    with transaction():
        return db.session.scalar(unused.returning(IdempotencyKey.key)) is not None


def forget(user_id: UUID) -> None:
    """Delete the keys by or about an erased account, whose stored answers name people; in the caller's transaction."""
    about = or_(IdempotencyKey.user_id == user_id, IdempotencyKey.resource_id == user_id)
    db.session.execute(delete(IdempotencyKey).where(about))


def purge(now: datetime | None = None) -> int:
    """Delete the keys that are older than 24 hours, a batch at a time, and return how many there were."""
    old = select(IdempotencyKey.user_id, IdempotencyKey.key).where(
        IdempotencyKey.created_at < (now or utcnow()) - KEPT_FOR
    )
    batch = delete(IdempotencyKey).where(tuple_(IdempotencyKey.user_id, IdempotencyKey.key).in_(old.limit(PURGE_BATCH)))
    purged = 0
    while True:
        with transaction():
            count = len(db.session.scalars(batch.returning(IdempotencyKey.key)).all())
        purged += count
        if count < PURGE_BATCH:
            return purged


def _is(user_id: UUID, key: str) -> ColumnElement[bool]:
    return and_(IdempotencyKey.user_id == user_id, IdempotencyKey.key == key)


def _find(user_id: UUID, key: str) -> Row[Any] | None:
    # Columns and not the object: one kept in the session would go stale.
    return db.session.execute(select(*IdempotencyKey.__table__.columns).where(_is(user_id, key))).first()


def _expire(user_id: UUID, key: str, found: Row[Any]) -> Row[Any] | None:
    """Delete a key whose time is over, as housekeeping would later, and return what stands there then."""
    with transaction():
        same = IdempotencyKey.created_at == found.created_at
        db.session.execute(delete(IdempotencyKey).where(_is(user_id, key), same))
    return _find(user_id, key)


def _take_over(user_id: UUID, key: str, found: Row[Any]) -> Claim:
    """Take a key that failed or was abandoned, as it was found; of several takers one finds it so."""
    now = utcnow()
    if found.state is State.IN_PROGRESS and found.locked_at > now - LOCKED_FOR:
        raise IdempotencyInProgress()
    take = (
        update(IdempotencyKey)
        .where(
            _is(user_id, key),
            IdempotencyKey.state == found.state,
            IdempotencyKey.locked_at == found.locked_at,
        )
        .values(state=State.IN_PROGRESS, locked_at=now)
    )
    with transaction():
        taken = db.session.execute(take.returning(IdempotencyKey.resource_id)).first()
    if taken is None:
        raise IdempotencyInProgress()
    return Claim(user_id, key, now, taken.resource_id)


def _write(claimed: Claim, **values: Any) -> None:
    with transaction():
        db.session.execute(update(IdempotencyKey).where(claimed.held()).values(**values))
