"""Files that are stored: finding, changing and deleting them, and who may read what."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, delete, literal_column, or_, select, union_all, update

from project import audit
from project.database import db, give_back, transaction
from project.errors import Conflict, Forbidden, NotFound, PreconditionFailed, Unavailable
from project.etags import Expected, check, matches
from project.files import direct, quota
from project.files.models import SORTS, DirectUpload, File, FileStatus, FileVariant, Visibility
from project.files.names import clean_filename
from project.files.storage import ObjectMissing, storage
from project.jobs import defer, task
from project.pagination import Page, PageRequest, contains, paginate
from project.security import Principal, Role
from project.users.service import on_erase

# As a word of the statement and not as a value: there are indexes of the files that are ready, and of a statement that
# is prepared the planner does not know the values.
_READY = literal_column(f"'{FileStatus.READY}'", File.status.type)


class NotReady(Conflict):
    """409: the bytes have not arrived, or are being checked."""

    code = "not_ready"
    message = "The file is not ready yet."
    cure = "Wait until its `status` is ready; complete the upload if it is a direct one."


def get_file(file_id: UUID, *, reader: Principal) -> File:
    """Return a file of the reader, or for staff anyone's.

    Raises:
        NotFound.
    """
    statement = select(File).where(File.id == file_id, File.status != FileStatus.DELETING)
    if not reader.role.covers(Role.STAFF):
        statement = statement.where(File.owner_id == reader.id)
    file = db.session.scalar(statement)
    if file is None:
        raise NotFound("There is no such file.")
    return file


def get_own(file_id: UUID, *, owner_id: UUID) -> File:
    """Return a file of its owner, whatever it is at.

    Raises:
        NotFound.
    """
    is_own = (File.id == file_id, File.owner_id == owner_id, File.status != FileStatus.DELETING)
    file = db.session.scalar(select(File).where(*is_own))
    if file is None:
        raise NotFound("There is no such file.")
    return file


def find_by_purpose(purpose: str, *, owner_id: UUID) -> File | None:
    """Return the newest ready file of an account with this purpose."""
    mine = (File.owner_id == owner_id, File.status == FileStatus.READY, File.purpose == purpose)
    return db.session.scalar(select(File).where(*mine).order_by(File.created_at.desc()).limit(1))


def get_any(file_id: UUID) -> File:
    """Return a file for whoever has shown that they may have it, as with the Idempotency-Key that made it.

    Raises:
        NotFound: it has been deleted since.
    """
    file = db.session.scalar(select(File).where(File.id == file_id, File.status != FileStatus.DELETING))
    if file is None:
        raise NotFound("There is no such file.")
    return file


def get_readable(file_id: UUID, *, reader_id: UUID | None, signed: bool) -> File:
    """Return a file whose content may be read: by its owner, by anyone if it is public, or by a signed URL.

    Raises:
        NotFound: also for staff, since the content of private files is the owner's alone.
        NotReady: told only to the owner.
        ObjectMissing: a sweep found its bytes lost.
    """
    statement = select(File).where(File.id == file_id, File.status != FileStatus.DELETING)
    if not signed:
        statement = statement.where(or_(File.owner_id == reader_id, File.visibility == Visibility.PUBLIC))
    file = db.session.scalar(statement)
    if file is None or (file.status is FileStatus.PENDING and file.owner_id != reader_id):
        raise NotFound("There is no such file.")
    if file.status is FileStatus.PENDING:
        raise NotReady()
    if file.status is FileStatus.MISSING:
        raise ObjectMissing()
    return file


def list_files(
    *,
    reader_id: UUID,
    owner_id: UUID | None,
    page: PageRequest,
    visibility: Visibility | None = None,
    purpose: str | None = None,
    content_type: str | None = None,
    q: str | None = None,
    created_after: datetime | None = None,
) -> Page[File]:
    """Return a page of the ready files of an account, or of all with `owner_id` None.

    `content_type` is a type, or a group such as `image/*`; `q` is looked for in names, whatever the case.
    """
    statement = select(File).where(File.status == _READY)
    if owner_id is not None:
        statement = statement.where(File.owner_id == owner_id)
    if visibility is not None:
        statement = statement.where(File.visibility == visibility)
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    if content_type is not None:
        statement = statement.where(_is_type(content_type))
    if q:
        statement = statement.where(contains(File.filename, q))
    if created_after is not None:
        statement = statement.where(File.created_at > created_after)
    return paginate(statement, page, sorts=SORTS, tiebreaker=File.id, owner=reader_id)


def _is_type(pattern: str) -> ColumnElement[bool]:
    if pattern.endswith("/*"):
        return File.content_type.startswith(pattern[:-1], autoescape=True)
    return File.content_type == pattern


def update_file(file_id: UUID, *, caller: Principal, expected: Expected = None, **changes: Any) -> File:
    """Change filename, visibility, purpose or metadata (as a whole); the content never changes.

    Raises:
        NotFound, PreconditionFailed. Forbidden: staff may read it, and the owner change it.
    """
    if "filename" in changes:
        changes["filename"] = clean_filename(changes["filename"])
    if "metadata" in changes:
        changes["labels"] = changes.pop("metadata")
    mine = (File.id == file_id, File.owner_id == caller.id, File.status != FileStatus.DELETING)
    change = update(File).where(*mine, matches(File, expected))
    values = {**changes, "version": File.version + 1} if changes else {"updated_at": File.updated_at}
    with transaction():
        file: File | None = db.session.scalar(
            change.values(values).returning(File), execution_options={"populate_existing": True}
        )
        if file is None:
            is_own = get_file(file_id, reader=caller).owner_id == caller.id
            raise PreconditionFailed() if is_own else Forbidden()
    return file


def delete_file(file_id: UUID, *, caller: Principal, expected: Expected = None) -> None:
    """Delete a file, as its owner or an administrator; it is gone at once and its bytes soon after.

    A direct upload that nobody has completed is aborted.

    Raises:
        NotFound, Forbidden, PreconditionFailed. NotReady: the bytes are arriving at this moment.
    """
    file = get_file(file_id, reader=caller)
    if file.owner_id != caller.id and not caller.role.covers(Role.ADMIN):
        raise Forbidden()
    if file.status is FileStatus.PENDING:
        check(file, expected)
        if _abort(file, caller):
            return
        # Completed in between: it is deleted like any other.
    stored = File.status.in_([FileStatus.READY, FileStatus.MISSING])
    change = update(File).where(File.id == file_id, stored, matches(File, expected))
    with transaction():
        statement = change.values(status=FileStatus.DELETING, version=File.version + 1).returning(File.id)
        if db.session.scalar(statement) is None:
            get_file(file_id, reader=caller)
            raise PreconditionFailed()
        _record_deletion(file, caller)
        defer(purge, file_id=file_id)


def _abort(file: File, caller: Principal) -> bool:
    """End a direct upload; tell whether it was still one."""
    incoming_key = direct.find_open(file.id)
    if incoming_key is None:
        raise NotReady("The file is being uploaded; delete it when it is ready.")
    if not direct.abort(file, incoming_key):
        return False
    with transaction():
        _record_deletion(file, caller)
    return True


def _record_deletion(file: File, caller: Principal) -> None:
    if file.owner_id != caller.id:
        audit.record("file_deleted", actor_id=caller.id, target_type="file", target_id=file.id)


@task
def purge(*, file_id: str) -> None:
    """Remove the bytes of a deleted file, then its row with what it took of the quota. Again is no change."""
    deleted = select(File).where(File.id == UUID(file_id), File.status == FileStatus.DELETING)
    file = db.session.scalar(deleted)
    if file is None:
        return
    variants = db.session.scalars(select(FileVariant.storage_key).where(FileVariant.file_id == file.id)).all()
    give_back()
    for key in (*variants, file.storage_key):
        storage().delete(key)
    with transaction():
        gone = delete(File).where(File.id == file.id, File.status == FileStatus.DELETING).returning(File.id)
        if db.session.scalar(gone) is not None and file.owner_id is not None:
            quota.free(file.owner_id, file.size)


@task
def purge_deleted() -> None:
    """Remove what is left of every deleted file.

    Raises:
        Unavailable: some could not be removed; the job comes again for them.
    """
    failure: Unavailable | None = None
    for file_id in db.session.scalars(select(File.id).where(File.status == FileStatus.DELETING)).all():
        try:
            purge(file_id=str(file_id))
        except Unavailable as error:
            failure = error
    if failure is not None:
        raise failure


@task
def delete_object(*, key: str) -> None:
    """Remove bytes that no row leads to any more."""
    storage().delete(key)


@on_erase
def forget_files(user_id: UUID) -> None:
    """Delete the files of an erased account and stop its uploads; the bytes go in jobs."""
    pending = (File.owner_id == user_id, File.status == FileStatus.PENDING)
    incoming = select(DirectUpload.incoming_key).join(File, File.id == DirectUpload.file_id).where(*pending)
    # What died while it was stored has its bytes under the file's own key.
    stored = select(File.storage_key).where(*pending)
    for key in db.session.scalars(union_all(incoming, stored)).all():
        defer(delete_object, key=key)
    db.session.execute(delete(File).where(*pending))
    others = update(File).where(File.owner_id == user_id)
    anonymous: dict[str, Any] = {"owner_id": None, "filename": "file", "labels": {}, "purpose": None}
    db.session.execute(others.values(status=FileStatus.DELETING, version=File.version + 1, **anonymous))
    quota.forget(user_id)
    defer(purge_deleted)
