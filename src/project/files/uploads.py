"""The one pipeline behind every way in: reserve, receive, check, store, publish.

Three short transactions and none while bytes are on their way. What a crash leaves, `sweep.py` clears away:

1. `begin` holds quota and makes the pending row. After it: a reservation and a row.
2. The bytes are written to a part, counted and hashed. After it: the part as well.
3. The part becomes an object under the row's key, flushed to disk. After it: an object whose row is pending.
4. `publish` makes the row ready and settles the quota. Only now the client is told; an answer that is lost can be had
   again with the same Idempotency-Key.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import delete, exists, select, update

from project.config import settings
from project.database import db, transaction, utcnow, uuid7
from project.errors import IncompleteBody, Invalid, PayloadTooLarge, Unavailable, UnsupportedMediaType, field_code
from project.files import quota
from project.files.media_types import HEAD_SIZE, effective_type, is_allowed
from project.files.models import File, FileStatus, UploadMethod, Visibility
from project.files.names import clean_filename
from project.files.parts import Part
from project.files.storage import disk_errors, new_key, storage
from project.files.thumbnails import dimensions
from project.idempotency_keys import attach
from project.users import service as users

logger = logging.getLogger(__name__)

# How often a slow upload tells that it lives; much less than what a sweep takes for dead.
TOUCH_SECONDS = 60

EMPTY_FILE = field_code("empty_file", "The file is empty.", "Send a file of at least one byte.")
DIGEST_MISMATCH = field_code(
    "digest_mismatch", "The bytes are not those of the digest.", "Send the file again; nothing was kept."
)


class FileTooLarge(PayloadTooLarge):
    """413: over FILES_MAX_SIZE."""

    code = "file_too_large"
    message = "The file is too large."
    cure = "Send a smaller file; `max_size` of GET /v1/files/config is the limit."

    def __init__(self) -> None:
        super().__init__(f"The file is larger than {settings.files.max_size} bytes.")


class TypeNotAllowed(UnsupportedMediaType):
    """415: FILES_ALLOWED_TYPES has no room for what the bytes are."""

    code = "type_not_allowed"
    message = "Files of this type are not accepted."
    cure = "Send one of the `allowed_types` of GET /v1/files/config; what counts is what the bytes are."


@dataclass(frozen=True)
class Description:
    """What a client says about a file that it sends."""

    method: UploadMethod
    filename: str
    declared_type: str
    visibility: Visibility = Visibility.PRIVATE
    purpose: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None  # what the bytes must have, in hexadecimal
    sha256_pointer: str = "/sha256"


@dataclass(frozen=True)
class Checked:
    """What the bytes turned out to be."""

    size: int
    sha256: str
    content_type: str
    width: int | None
    height: int | None


def check_size(size: int) -> None:
    """Refuse a file over the limit.

    Raises:
        FileTooLarge.
    """
    if size > settings.files.max_size:
        raise FileTooLarge()


def new_part(file_id: UUID | None = None, *, room: int | None = None) -> Part:
    """Make a part that refuses what is over FILES_MAX_SIZE, or over the room that there is if that is less."""
    limit = settings.files.max_size
    if room is not None and room < limit:
        return Part(file_id or uuid7(), limit=room, refusal=quota.QuotaExceeded())
    return Part(file_id or uuid7(), limit=limit, refusal=FileTooLarge())


def upload_raw(description: Description, blocks: Iterable[bytes], *, owner_id: UUID, length: int | None) -> File:
    """Store a body as it comes; `length` is its Content-Length, None when chunked.

    Of a chunked one as much is reserved as it may take, and the rest given back at the end.

    Raises:
        FileTooLarge, QuotaExceeded, IncompleteBody, TypeNotAllowed, Unavailable.
        Invalid: empty_file, digest_mismatch.
    """
    if length == 0:
        raise Invalid.field("/file", EMPTY_FILE)
    if length is not None:
        check_size(length)
    # At least one byte, so that an account without room hears it before it sends.
    room = length or max(1, min(settings.files.max_size, quota.usage(owner_id).available))
    file = begin(description, owner_id=owner_id, size=room)
    with _undone_on_error(file):
        part = new_part(file.id, room=room)
        try:
            _receive(part, blocks, file)
            if length is not None and part.size != length:
                raise IncompleteBody()
            return _keep(file, part, description)
        finally:
            part.discard()


def upload_part(description: Description, part: Part, *, owner_id: UUID) -> File:
    """Store what a form brought; the caller discards the part in any case.

    Raises:
        QuotaExceeded, TypeNotAllowed, Unavailable.
        Invalid: empty_file, digest_mismatch.
    """
    file = begin(description, owner_id=owner_id, size=part.size, file_id=part.file_id)
    with _undone_on_error(file):
        return _keep(file, part, description)


def begin(description: Description, *, owner_id: UUID, size: int, file_id: UUID | None = None) -> File:
    """Hold the quota and make the pending row.

    Raises:
        QuotaExceeded. SessionRevoked: the account has just been erased.
    """
    file = File(
        id=file_id or uuid7(),
        owner_id=owner_id,
        filename=clean_filename(description.filename),
        size=size,
        reserved=size,
        content_type=description.declared_type,
        declared_type=description.declared_type,
        storage_key=new_key(),
        visibility=description.visibility,
        purpose=description.purpose,
        labels=description.metadata,
        upload_method=description.method,
    )
    with transaction():
        users.keep_user(owner_id)
        quota.reserve(owner_id, size)
        db.session.add(file)
    return file


def check(description: Description, content: BinaryIO, *, size: int, sha256: str) -> Checked:
    """Hold stored bytes against what was said of them, and find out what they are.

    Raises:
        TypeNotAllowed.
        Invalid: empty_file, digest_mismatch.
    """
    if size == 0:
        raise Invalid.field("/file", EMPTY_FILE)
    if description.sha256 not in {None, sha256}:
        raise Invalid.field(description.sha256_pointer, DIGEST_MISMATCH)
    content_type = effective_type(content.read(HEAD_SIZE), description.declared_type)
    if not is_allowed(content_type, settings.files.allowed_types):
        raise TypeNotAllowed(f"The file is {content_type}, which is not accepted here.")
    content.seek(0)
    width, height = dimensions(content, content_type) or (None, None)
    return Checked(size, sha256, content_type, width, height)


def publish(file: File, checked: Checked, *, ready_at: datetime) -> File:
    """Make the row ready: the object is in storage.

    Raises:
        Unavailable: the row has gone meanwhile, with its account or in a sweep.
    """
    reserved = file.reserved  # the row that comes back is the same object
    pending = update(File).where(File.id == file.id, File.status == FileStatus.PENDING)
    statement = pending.values(
        status=FileStatus.READY, reserved=0, ready_at=ready_at, version=File.version + 1, **asdict(checked)
    )
    with transaction():
        ready: File | None = db.session.scalar(statement.returning(File), execution_options={"populate_existing": True})
        if ready is not None and ready.owner_id is not None:
            quota.settle(ready.owner_id, reserved=reserved, used=checked.size)
            attach(ready.id)
    if ready is None:
        raise _cleared_away()
    return ready


def abandon(file: File) -> bool:
    """Undo a pending upload: the row and what it reserved, then the object; tell whether it was still pending.

    The row goes first: one whose bytes are gone must never become ready, not even when this fails half way.
    """
    pending = delete(File).where(File.id == file.id, File.status == FileStatus.PENDING)
    with transaction():
        was_pending = db.session.scalar(pending.returning(File.id)) is not None
        if was_pending and file.owner_id is not None:
            quota.release(file.owner_id, file.reserved)
        # What `publish` could not say for certain, when the connection broke: the row may be ready.
        is_there = db.session.scalar(select(exists(select(File.id).where(File.id == file.id))))
    if not is_there:
        storage().delete(file.storage_key)
    return was_pending


def _keep(file: File, part: Part, description: Description) -> File:
    part.close()
    with disk_errors(), part.path.open("rb") as content:
        checked = check(description, content, size=part.size, sha256=part.sha256)
    ready_at = utcnow()
    storage().put(
        file.storage_key, part.path, content_type=checked.content_type, sha256=checked.sha256, modified=ready_at
    )
    return publish(file, checked, ready_at=ready_at)


def _receive(part: Part, blocks: Iterable[bytes], file: File) -> None:
    touched = time.monotonic()
    for block in blocks:
        part.write(block)
        if time.monotonic() - touched > TOUCH_SECONDS:
            touched = time.monotonic()
            touch(file)


def touch(file: File) -> None:
    """Tell sweeps that a pending upload is alive.

    Raises:
        Unavailable: one has taken it for dead.
    """
    pending = update(File).where(File.id == file.id, File.status == FileStatus.PENDING)
    with transaction():
        is_pending = db.session.scalar(pending.values(updated_at=utcnow()).returning(File.id)) is not None
    if not is_pending:
        raise _cleared_away()


def _cleared_away() -> Unavailable:
    # Raised outside the transaction: a rollback would make the session forget the row, which is not there to be read
    # again, and with it what has to be undone.
    return Unavailable("The upload was cleared away before it was complete; send it again.")


@contextmanager
def _undone_on_error(file: File) -> Iterator[None]:
    try:
        yield
    except BaseException:
        try:
            abandon(file)
        except Exception as error:  # noqa: BLE001 - what went wrong first is told; a sweep does the rest
            logger.warning("upload_not_undone", extra={"error": type(error).__name__})
        raise
