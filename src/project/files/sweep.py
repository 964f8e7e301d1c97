"""Clearing up what crashes leave behind, and verifying that storage holds what the rows say.

Every step may run twice, and beside a running server: rows are changed by guarded writes, and only what nobody has
touched for a while is taken for dead. What a wrong DATABASE_URL or an unmounted disk would turn into a disaster,
deleting objects without a row and marking rows without an object, is done by `flask files sweep` only.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, union_all, update
from sqlalchemy.orm import InstrumentedAttribute

from project.database import db, give_back, transaction, utcnow
from project.files import direct, quota, uploads
from project.files.models import DirectUpload, File, FileStatus, FileVariant, StorageUsage
from project.files.parts import SUFFIX, measure
from project.files.service import purge
from project.files.storage import ObjectMissing, Stored, disk_errors, new_key, storage
from project.jobs import periodic

logger = logging.getLogger(__name__)

# A living upload touches its row every minute.
OLDER_THAN = 900  # seconds
BATCH = 200


@dataclass
class Swept:
    """How much was found and, unless it was a dry run, cured."""

    uploads: int = 0
    parts: int = 0
    deleted: int = 0
    orphans: int = 0
    missing: int = 0
    found: int = 0
    recounted: int = 0


@dataclass(frozen=True)
class Verified:
    """A file that was held against its row; `problem` is None when they agree."""

    file_id: UUID
    problem: str | None


def sweep(*, older_than: int = OLDER_THAN, dry_run: bool = False) -> Swept:
    """Cure all that a crash can leave, as far as it is older than `older_than` seconds, and count it."""
    before = utcnow() - timedelta(seconds=older_than)
    # First, since counters that are too low let nothing be taken from them.
    recounted = sum(quota.recount(user_id, dry_run=dry_run) for user_id in _ids(StorageUsage.user_id))
    return Swept(
        uploads=_end_uploads(before, dry_run=dry_run),
        parts=_remove_parts(before, dry_run=dry_run),
        deleted=_finish_deletions(before, dry_run=dry_run),
        orphans=_remove_orphans(before, dry_run=dry_run),
        missing=_mark_missing(dry_run=dry_run),
        found=_mark_found(dry_run=dry_run),
        recounted=recounted,
    )


@periodic("*/15 * * * *")
def end_stale() -> None:
    """End the uploads and finish the deletions that a crash has stopped."""
    before = utcnow() - timedelta(seconds=OLDER_THAN)
    _end_uploads(before, dry_run=False)
    _remove_parts(before, dry_run=False)
    _finish_deletions(before, dry_run=False)


def count_files(*, sample: int | None = None) -> int:
    """Return how many files `verify` will look at."""
    total = db.session.scalar(select(func.count()).select_from(_stored().subquery())) or 0
    return total if sample is None else min(sample, total)


def verify(*, sample: int | None = None) -> Iterator[Verified]:
    """Read every stored file, or `sample` of them picked by chance, and compare its bytes with its row."""
    chosen = _ids(File.id, File.status.in_([FileStatus.READY, FileStatus.MISSING]))
    if sample is not None:
        chosen = iter(db.session.scalars(_stored().order_by(func.random()).limit(sample)).all())
    for file_id in chosen:
        file = db.session.scalar(select(File).where(File.id == file_id), execution_options={"populate_existing": True})
        if file is not None and file.status is not FileStatus.DELETING:
            yield Verified(file_id, _problem(file))


def find_orphans(*, older_than: int = OLDER_THAN) -> Iterator[Stored]:
    """Find the objects that belong to no row and are older than `older_than` seconds."""
    before = utcnow() - timedelta(seconds=older_than)
    batch: list[Stored] = []
    for stored in storage().objects():
        if stored.modified < before:
            batch.append(stored)
        if len(batch) == BATCH:
            yield from _without_row(batch)
            batch = []
    yield from _without_row(batch)


def wrong_counters() -> list[UUID]:
    """Return the accounts whose counters are not the sums of their files."""
    return [user_id for user_id in _ids(StorageUsage.user_id) if quota.recount(user_id, dry_run=True)]


def _end_uploads(before: datetime, *, dry_run: bool) -> int:
    is_direct = exists().where(DirectUpload.file_id == File.id)
    expired = exists().where(DirectUpload.file_id == File.id, DirectUpload.expires_at < utcnow())
    stale = or_(expired, ~is_direct & (File.updated_at < before))
    count = 0
    for file_id in _ids(File.id, File.status == FileStatus.PENDING, stale):
        count += 1
        if not dry_run:
            _end_upload(file_id)
    return count


def _end_upload(file_id: UUID) -> None:
    file = db.session.get(File, file_id, populate_existing=True)
    if file is not None:
        incoming_key = db.session.scalar(select(DirectUpload.incoming_key).where(DirectUpload.file_id == file_id))
        if incoming_key is None:
            uploads.abandon(file)
        else:
            direct.abort(file, incoming_key)


def _remove_parts(before: datetime, *, dry_run: bool) -> int:
    """Remove what was being received by processes that are no more: no living upload has it."""
    count = 0
    for path in storage().incoming_parts.glob(f"*{SUFFIX}"):
        with disk_errors(), suppress(FileNotFoundError):  # the upload has just ended
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before and not _is_living(path.stem, before):
                count += 1
                if not dry_run:
                    path.unlink()
    return count


def _is_living(part: str, before: datetime) -> bool:
    """Tell whether this is the name of a part that is being received; what has another kind of name is a stranger's."""
    try:
        file_id = UUID(part)
    except ValueError:
        return True
    living = select(File.id).where(File.id == file_id, File.status == FileStatus.PENDING, File.updated_at >= before)
    return db.session.scalar(living) is not None


def _finish_deletions(before: datetime, *, dry_run: bool) -> int:
    count = 0
    for file_id in _ids(File.id, File.status == FileStatus.DELETING, File.updated_at < before):
        count += 1
        if not dry_run:
            purge(file_id=str(file_id))
    return count


def _remove_orphans(before: datetime, *, dry_run: bool) -> int:
    count = 0
    for stored in find_orphans(older_than=int((utcnow() - before).total_seconds())):
        count += 1
        if not dry_run:
            storage().delete(stored.key)
    return count


def _without_row(batch: list[Stored]) -> list[Stored]:
    keys = [stored.key for stored in batch]
    columns = (File.storage_key, FileVariant.storage_key, DirectUpload.incoming_key)
    known = set(db.session.scalars(union_all(*(select(column).where(column.in_(keys)) for column in columns))))
    return [stored for stored in batch if stored.key not in known]


def _mark_missing(*, dry_run: bool) -> int:
    count = 0
    for file_id in _ids(File.id, File.status == FileStatus.READY):
        if _has_bytes(file_id):
            continue
        if dry_run:
            count += 1
        elif _mark(file_id, FileStatus.READY, FileStatus.MISSING):
            count += 1
            logger.error("file_lost", extra={"file": str(file_id)})
    return count


def _mark_found(*, dry_run: bool) -> int:
    """Take back what was said of files whose bytes were away with a disk, or came back with a backup."""
    count = 0
    for file_id in _ids(File.id, File.status == FileStatus.MISSING):
        if _has_bytes(file_id) and (dry_run or _mark(file_id, FileStatus.MISSING, FileStatus.READY)):
            count += 1
    return count


def _has_bytes(file_id: UUID) -> bool:
    file = db.session.get(File, file_id, populate_existing=True)
    stored = storage().find(file.storage_key) if file else None
    # One that was deleted meanwhile is no concern of ours.
    return file is None or (stored is not None and stored.size == file.size)


def _mark(file_id: UUID, before: FileStatus, after: FileStatus) -> bool:
    change = update(File).where(File.id == file_id, File.status == before)
    with transaction():
        marked = change.values(status=after, version=File.version + 1).returning(File.id)
        return db.session.scalar(marked) is not None


def _problem(file: File) -> str | None:
    give_back()
    try:
        with storage().open(file.storage_key) as content:
            found = measure(content)
    except ObjectMissing:
        return "its bytes are missing"
    if found != (file.size, file.sha256):
        return "its bytes are not those that were stored"
    return "it counts as missing, and its bytes are there" if file.status is FileStatus.MISSING else None


def _stored() -> Select[UUID]:
    return select(File.id).where(File.status.in_([FileStatus.READY, FileStatus.MISSING]))


def _ids(column: InstrumentedAttribute[UUID], *conditions: ColumnElement[bool]) -> Iterator[UUID]:
    """Walk over ids in order, a batch at a time; rows may come and go meanwhile."""
    last: UUID | None = None
    while True:
        statement = select(column).where(*conditions).order_by(column).limit(BATCH)
        batch = db.session.scalars(statement if last is None else statement.where(column > last)).all()
        yield from batch
        if len(batch) < BATCH:
            return
        last = batch[-1]


def storage_answers() -> None:
    """Raise when the storage cannot be asked for an object, such as a disk that is not mounted."""
    storage().find(new_key())
