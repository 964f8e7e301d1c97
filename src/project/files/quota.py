"""What accounts may store: reserving, using and giving back bytes, each as one guarded UPDATE.

All but `usage`, `available` and `set_quota` belong into the transaction of the file row they are about, so that the
counters are the sums of the rows whatever dies where. On both databases such an UPDATE is atomic; a look followed by
a write is not.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import case, delete, func, select, update

from project import audit, metrics
from project.config import settings
from project.database import db, insert, transaction
from project.errors import PayloadTooLarge
from project.files.models import File, FileStatus, StorageUsage
from project.users import service as users


class QuotaExceeded(PayloadTooLarge):
    """413: the account has no room for the file. Not 507, which makes clients try again."""

    code = "quota_exceeded"
    message = "There is not enough room left for this file."
    cure = "Delete files, or ask an administrator for a larger quota; see GET /v1/files/usage."


@dataclass(frozen=True)
class Usage:
    """What an account has stored and may store, in bytes; `reserved` is held by uploads under way."""

    used: int
    reserved: int
    quota: int
    file_count: int

    @property
    def available(self) -> int:
        """What is left; 0 also when the quota was made smaller than what is stored."""
        return max(0, self.quota - self.used - self.reserved)


def usage(user_id: UUID) -> Usage:
    """Return what an account has stored; nothing when it has no row yet."""
    row = db.session.execute(select(*StorageUsage.__table__.columns).where(StorageUsage.user_id == user_id)).first()
    if row is None:
        return Usage(0, 0, settings.files.quota, 0)
    return Usage(row.used, row.reserved, settings.files.quota if row.quota is None else row.quota, row.file_count)


def reserve(user_id: UUID, size: int) -> None:
    """Hold room for an upload.

    Raises:
        QuotaExceeded.
    """
    _ensure_row(user_id)
    room = StorageUsage.used + StorageUsage.reserved + size <= func.coalesce(StorageUsage.quota, settings.files.quota)
    statement = update(StorageUsage).where(StorageUsage.user_id == user_id, room)
    reserved = statement.values(reserved=StorageUsage.reserved + size).returning(StorageUsage.user_id)
    if db.session.scalar(reserved) is None:
        metrics.QUOTA_REFUSALS.inc()
        raise QuotaExceeded()


def settle(user_id: UUID, *, reserved: int, used: int) -> None:
    """Turn what an upload held into what its file takes; `used` is never more than `reserved`."""
    _change(user_id, reserved=-reserved, used=used, files=1)


def release(user_id: UUID, reserved: int) -> None:
    """Give back what an upload held that came to nothing."""
    _change(user_id, reserved=-reserved)


def free(user_id: UUID, used: int) -> None:
    """Give back what a purged file took."""
    _change(user_id, used=-used, files=-1)


def set_quota(user_id: UUID, *, quota: int | None, actor_id: UUID) -> Usage:
    """Give an account a quota of its own in bytes, or None for the default; what is stored stays.

    Raises:
        NotFound: there is no such account.
    """
    with transaction():
        users.get_user(user_id)
        _ensure_row(user_id)
        db.session.execute(update(StorageUsage).where(StorageUsage.user_id == user_id).values(quota=quota))
        audit.record("quota_changed", actor_id=actor_id, target_type="user", target_id=user_id, quota=quota)
    return usage(user_id)


def get_usage(user_id: UUID) -> Usage:
    """Return what an account has stored.

    Raises:
        NotFound: there is no such account.
    """
    users.get_user(user_id)
    return usage(user_id)


def forget(user_id: UUID) -> None:
    """Remove the counters of an erased account; in the caller's transaction."""
    db.session.execute(delete(StorageUsage).where(StorageUsage.user_id == user_id))


def recount(user_id: UUID, *, dry_run: bool = False) -> bool:
    """Make the counters the sums of the rows again, and tell whether they were not.

    Whoever changes a file changes the counters in the same transaction, so while they are locked the sums hold.
    """
    columns = (StorageUsage.used, StorageUsage.reserved, StorageUsage.file_count)
    with transaction():
        counted = db.session.execute(select(*columns).where(StorageUsage.user_id == user_id).with_for_update()).first()
        stored = File.status != FileStatus.PENDING
        sums = select(
            func.coalesce(func.sum(case((stored, File.size), else_=0)), 0),
            func.coalesce(func.sum(File.reserved), 0),
            func.coalesce(func.sum(case((stored, 1), else_=0)), 0),
        )
        true = [int(value) for value in db.session.execute(sums.where(File.owner_id == user_id)).one()]
        if counted is None or list(counted) == true:
            return False
        if not dry_run:
            values = dict(zip((column.key for column in columns), true, strict=True))
            db.session.execute(update(StorageUsage).where(StorageUsage.user_id == user_id).values(values))
    return True


def _ensure_row(user_id: UUID) -> None:
    row = {"user_id": user_id, "used": 0, "reserved": 0, "file_count": 0}
    db.session.execute(insert(StorageUsage).values(row).on_conflict_do_nothing())


def _change(user_id: UUID, *, reserved: int = 0, used: int = 0, files: int = 0) -> None:
    db.session.execute(
        update(StorageUsage)
        .where(StorageUsage.user_id == user_id)
        .values(
            reserved=StorageUsage.reserved + reserved,
            used=StorageUsage.used + used,
            file_count=StorageUsage.file_count + files,
        )
    )
