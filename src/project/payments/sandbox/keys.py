"""Idempotency keys as Stripe keeps them: what was answered once is answered again, refusals included."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update

from project.database import db, insert, transaction, utcnow
from project.payments.sandbox.errors import Answer, WireError
from project.payments.sandbox.models import FRESH, SandboxKey

KEEP = timedelta(hours=24)
# Longer than any call takes: whoever holds a key for more has died.
LOCKED = timedelta(seconds=30)


def once(key: str, fingerprint: str, execute: Callable[[], dict[str, Any]]) -> Answer:
    """Answer a call, once for each key: the object and the kept answer are one transaction.

    Raises:
        WireError: the key was used for another call, or is in use.
    """
    known = _claim(key, fingerprint)
    if isinstance(known, Answer):
        return known
    try:
        with transaction():
            answer = Answer.of(execute())
            _keep(key, known, answer)
    except WireError as refusal:
        answer = refusal.answer
        with transaction():
            _keep(key, known, answer)
    except BaseException:
        _release(key, known)
        raise
    return answer


def _claim(key: str, fingerprint: str) -> datetime | Answer:
    """Return when we took the key, or what was answered before."""
    now = utcnow()
    row = {"key": key, "fingerprint": fingerprint, "created_at": now, "locked_at": now}
    new = insert(SandboxKey).values(row).on_conflict_do_nothing().returning(SandboxKey.key)
    with transaction():
        if db.session.scalar(new) is not None:
            return now
        found = select(SandboxKey).where(SandboxKey.key == key).with_for_update()
        held = db.session.scalar(found, execution_options=FRESH)
        if held is not None and held.fingerprint != fingerprint:
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with."
            )
            raise WireError(message, kind="idempotency_error")
        if held is not None and held.status is not None:
            return Answer(held.status, held.body or "", replayed=True)
        if held is None or held.locked_at > now - LOCKED:
            raise _in_use()
        held.locked_at = now
    return now


def _keep(key: str, locked_at: datetime, answer: Answer) -> None:
    """Keep the answer, unless somebody has taken the key over."""
    ours = update(SandboxKey).where(SandboxKey.key == key, SandboxKey.locked_at == locked_at)
    kept = ours.values(status=answer.status, body=answer.body).returning(SandboxKey.key)
    if db.session.scalar(kept) is None:
        raise _in_use()


def _release(key: str, locked_at: datetime) -> None:
    with transaction():
        db.session.execute(delete(SandboxKey).where(SandboxKey.key == key, SandboxKey.locked_at == locked_at))


def _in_use() -> WireError:
    message = "Another request with this Idempotency-Key is in progress."
    return WireError(message, code="idempotency_key_in_use", kind="idempotency_error", status=409)


def purge() -> None:
    """Forget the keys that are too old to be used again."""
    old = delete(SandboxKey).where(SandboxKey.created_at < utcnow() - KEEP)
    with transaction():
        db.session.execute(old)
