"""Thumbnails: made when first asked for, kept beside the file, and made again when their bytes are lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from project.database import db, give_back, transaction, utcnow
from project.errors import NotFound, Unavailable
from project.files import thumbnails
from project.files.models import File, FileStatus, FileVariant
from project.files.storage import new_key, storage
from project.files.thumbnails import NotAnImage
from project.files.uploads import new_part

# Thumbnails in the making are made one by one, each by a thread of the server. Were there no limit, a few hundred
# requests for thumbnails would have all threads, and nothing else would be answered until the last is made.
MAX_WAITING = 64
_places = BoundedSemaphore(MAX_WAITING)


def get_thumbnail(file: File, *, size: int, kind: str) -> FileVariant:
    """Return the thumbnail of a file whose longest side has at most `size` pixels; `kind` is webp or jpeg.

    Raises:
        NotAnImage, ImageTooLarge, ObjectMissing. NotFound: it was deleted meanwhile.
        Unavailable: also when too many thumbnails are in the making.
    """
    if file.content_type not in thumbnails.PICTURES:
        raise NotAnImage()
    spec = f"{size}-{kind}"
    found = _find(file.id, spec)
    give_back()
    if found is not None:
        if storage().find(found.storage_key) is not None:
            return found
        with transaction():
            db.session.execute(delete(FileVariant).where(FileVariant.id == found.id))
    with _place(), storage().open(file.storage_key) as original:
        picture = thumbnails.render(original, size=size, format=kind)
    return _keep(FileVariant(file_id=file.id, spec=spec, storage_key=new_key(), content_type=f"image/{kind}"), picture)


@contextmanager
def _place() -> Iterator[None]:
    if not _places.acquire(blocking=False):
        raise Unavailable("Too many thumbnails are being made right now.")
    try:
        yield
    finally:
        _places.release()


def _keep(variant: FileVariant, picture: bytes) -> FileVariant:
    """Store a thumbnail. Of several made at once one gets the row, and the others use it."""
    part = new_part()
    try:
        variant.size = part.write(picture)
        part.close()
        storage().put(
            variant.storage_key,
            part.path,
            content_type=variant.content_type,
            sha256=part.sha256,
            modified=utcnow(),
        )
    finally:
        part.discard()
    try:
        _add(variant)
    except (IntegrityError, NotFound):
        storage().delete(variant.storage_key)
        winner = _find(variant.file_id, variant.spec)
        if winner is None:
            raise NotFound("There is no such file.") from None
        return winner
    return variant


def _add(variant: FileVariant) -> None:
    ready = select(File.id).where(File.id == variant.file_id, File.status == FileStatus.READY)
    with transaction():
        # A purge lists what it removes after the file was marked as deleted; nothing may be added from then on.
        if db.session.scalar(ready.with_for_update(read=True)) is None:
            raise NotFound("There is no such file.")
        db.session.add(variant)


def _find(file_id: UUID, spec: str) -> FileVariant | None:
    return db.session.scalar(select(FileVariant).where(FileVariant.file_id == file_id, FileVariant.spec == spec))
