"""Uploads that clients send straight to S3: the signed permission, and the completion that checks what came."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, or_, select, update

from project.config import settings
from project.database import db, give_back, transaction, utcnow
from project.errors import AppError, Conflict, Invalid, NotFound
from project.files import uploads
from project.files.media_types import is_allowed
from project.files.models import DirectUpload, File, FileStatus, UploadMethod
from project.files.parts import measure
from project.files.storage import DirectStorage, ObjectMissing, new_incoming_key, storage
from project.idempotency_keys import attach

# The URL is for one PUT that starts now; the row outlives it so that a slow client can still complete.
URL_SECONDS = 15 * 60
ROW_LIFETIME = timedelta(hours=24)
# A completion that takes longer has died with its process, and another may take over.
COMPLETING = timedelta(minutes=5)


class DirectUploadUnsupported(Conflict):
    """409: the files are on local disk, where clients cannot send them by themselves."""

    code = "direct_upload_unsupported"
    message = "Direct uploads need S3 storage, which this service does not use."
    cure = "Upload with POST /v1/files or /v1/files/raw; see `direct_upload` of GET /v1/files/config."


class UploadIncomplete(Conflict):
    """409: the bytes of a direct upload are not there, or it is being completed at this moment."""

    code = "upload_incomplete"
    message = "The bytes of this upload have not arrived."
    cure = "PUT them to the upload's `url` with its `headers`, then complete again; once it has expired, begin anew."


@dataclass(frozen=True)
class Permission:
    """What a client needs to send the bytes of a file to storage."""

    method: str
    url: str
    headers: dict[str, str]
    expires_at: datetime


@dataclass(frozen=True)
class DirectFile:
    """A pending file and the permission to send its bytes."""

    file: File
    upload: Permission


def start(description: uploads.Description, *, size: int, owner_id: UUID) -> DirectFile:
    """Reserve room for a file and permit to put exactly its bytes into storage, for 15 minutes.

    Raises:
        FileTooLarge, TypeNotAllowed, DirectUploadUnsupported, QuotaExceeded, Unavailable.
    """
    uploads.check_size(size)
    if not is_allowed(description.declared_type, settings.files.allowed_types):
        raise uploads.TypeNotAllowed()
    incoming = new_incoming_key()
    # First of all, so that nothing is held for a permission that cannot be given.
    permission = _permit(incoming, size=size, content_type=description.declared_type, sha256=str(description.sha256))
    with transaction():
        file = uploads.begin(description, owner_id=owner_id, size=size)
        file.sha256 = description.sha256  # kept while it is pending: it was signed and is compared at the end
        db.session.flush()
        db.session.add(DirectUpload(file_id=file.id, incoming_key=incoming, expires_at=utcnow() + ROW_LIFETIME))
        attach(file.id)
    return DirectFile(file, permission)


def resume(file_id: UUID) -> DirectFile:
    """Permit again what an earlier request with the same Idempotency-Key had permitted.

    Raises:
        NotFound: it has been completed, aborted or has expired since.
        Unavailable.
    """
    found = db.session.execute(
        select(File, DirectUpload.incoming_key)
        .join(DirectUpload, DirectUpload.file_id == File.id)
        .where(File.id == file_id)
    ).first()
    if found is None:
        raise NotFound("There is no such upload.")
    file, incoming = found
    permission = _permit(incoming, size=file.size, content_type=file.declared_type, sha256=str(file.sha256))
    return DirectFile(file, permission)


def complete(file_id: UUID, *, owner_id: UUID) -> File:
    """Check the bytes that a client has put into storage and make the file ready; again is no change.

    Raises:
        NotFound, UploadIncomplete, TypeNotAllowed, Unavailable.
        Invalid: digest_mismatch; the upload is over and its bytes are deleted.
    """
    file = db.session.scalar(
        select(File).where(File.id == file_id, File.owner_id == owner_id, File.status != FileStatus.DELETING)
    )
    if file is None:
        raise NotFound("There is no such file.")
    if file.status is not FileStatus.PENDING:
        return file
    storage_key = file.storage_key
    upload = _claim(file)
    try:
        return _publish(file, _take_in(file, upload))
    except (Invalid, uploads.TypeNotAllowed):
        abort(file, upload.incoming_key)
        raise
    except AppError:
        # The objects cannot be asked any more: their rows may have gone, and a rollback has made them forget.
        _open_again(file_id, storage_key)
        raise


def find_open(file_id: UUID) -> str | None:
    """Return where the bytes of a direct upload would be that nobody is completing."""
    return db.session.scalar(select(DirectUpload.incoming_key).where(DirectUpload.file_id == file_id, _is_open()))


def abort(file: File, incoming_key: str) -> bool:
    """End a direct upload, its row with what that reserved and its bytes; tell whether it was still pending."""
    was_pending = uploads.abandon(file)
    if was_pending:
        storage().delete(incoming_key)
    return was_pending


def _storage() -> DirectStorage:
    store = storage()
    if not store.direct:
        raise DirectUploadUnsupported()
    return store


def _permit(incoming_key: str, *, size: int, content_type: str, sha256: str) -> Permission:
    store = _storage()
    give_back()  # who signs may have to fetch credentials first
    expires_at = utcnow() + timedelta(seconds=URL_SECONDS)
    url, headers = store.upload_target(
        incoming_key, size=size, content_type=content_type, sha256=sha256, seconds=URL_SECONDS
    )
    return Permission("PUT", url, headers, expires_at)


def _is_open() -> ColumnElement[bool]:
    return or_(DirectUpload.completing_at.is_(None), DirectUpload.completing_at < utcnow() - COMPLETING)


def _claim(file: File) -> DirectUpload:
    """Let one completion at a time go on."""
    now = utcnow()
    claim = update(DirectUpload).where(DirectUpload.file_id == file.id, DirectUpload.expires_at > now, _is_open())
    statement = claim.values(completing_at=now).returning(DirectUpload)
    with transaction():
        upload: DirectUpload | None = db.session.scalar(statement, execution_options={"populate_existing": True})
    if upload is None:
        raise UploadIncomplete("It is being completed already, or it has expired, or it is no direct upload.")
    return upload


def _take_in(file: File, upload: DirectUpload) -> uploads.Checked:
    """Move the bytes to where nobody else can put any, and check them there."""
    store = _storage()
    try:
        # An earlier completion may have moved them and died.
        with suppress(ObjectMissing):
            store.move(upload.incoming_key, file.storage_key)
        with store.open(file.storage_key) as content:
            return _check(file, content)
    except ObjectMissing:
        raise UploadIncomplete() from None


def _check(file: File, content: BinaryIO) -> uploads.Checked:
    size, sha256 = measure(content)
    if size != file.size:
        raise Invalid.field("/size", uploads.DIGEST_MISMATCH, "The bytes in storage are of another number.")
    content.seek(0)
    described = uploads.Description(UploadMethod.DIRECT, file.filename, file.declared_type, sha256=file.sha256)
    return uploads.check(described, content, size=size, sha256=sha256)


def _publish(file: File, checked: uploads.Checked) -> File:
    with transaction():
        ready = uploads.publish(file, checked, ready_at=utcnow())
        db.session.execute(delete(DirectUpload).where(DirectUpload.file_id == ready.id))
    return ready


def _open_again(file_id: UUID, storage_key: str) -> None:
    """Let it be completed later; of a file that has gone meanwhile delete the bytes, which had been moved."""
    with transaction():
        db.session.execute(update(DirectUpload).where(DirectUpload.file_id == file_id).values(completing_at=None))
        is_there = db.session.scalar(select(exists().where(File.id == file_id)))
    if not is_there:
        storage().delete(storage_key)
