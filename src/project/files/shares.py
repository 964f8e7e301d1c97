"""Links that share a file with whoever has them: made, listed, revoked, and counted when they are used."""

import hashlib
import secrets
from datetime import timedelta
from http import HTTPStatus
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from project.config import settings
from project.database import db, transaction, utcnow, uuid7
from project.errors import AppError, NotFound
from project.files.models import FILES, SHARE_LINKS, SHARE_SORTS, File, FileStatus, ShareLink
from project.files.service import get_own
from project.files.storage import ObjectMissing
from project.idempotency_keys import make
from project.pagination import Page, PageRequest, paginate

TOKEN_BYTES = 32


class ShareExpired(AppError):
    """410: the link was good once."""

    status = HTTPStatus.GONE
    code = "share_expired"
    message = "This link has expired, was used up or was revoked."
    cure = "Ask whoever sent it for a new one."


_GIVEN = [column for column in SHARE_LINKS.c if column.name != "revoked_at"]
# One statement finds the owner's file and makes the link.
_CREATE = (
    insert(SHARE_LINKS)
    .from_select(
        _GIVEN,
        select(*(bindparam(column.name, type_=column.type) for column in _GIVEN)).where(
            FILES.c.id == bindparam("file_id"),
            FILES.c.owner_id == bindparam("owner_id"),
            FILES.c.status != FileStatus.DELETING,
        ),
    )
    .returning(SHARE_LINKS.c.id)
)


def create(
    file_id: UUID,
    *,
    owner_id: UUID,
    expires_in: int,
    max_downloads: int | None = None,
    label: str | None = None,
) -> ShareLink:
    """Make a link to a file, good for `expires_in` seconds and at most `max_downloads` downloads.

    Its `url` is known only now: of the token in it a hash is kept.

    Raises:
        NotFound: there is no such file of this owner.
    """
    token, now = _new_token(), utcnow()
    share = ShareLink(
        id=uuid7(),
        file_id=file_id,
        token_sha256=_hash(token),
        label=label,
        expires_at=now + timedelta(seconds=expires_in),
        max_downloads=max_downloads,
        downloads=0,
        created_at=now,
        updated_at=now,
    )
    values = {column.name: getattr(share, column.name) for column in _GIVEN}
    try:
        made = make(_CREATE, share.id, {**values, "owner_id": owner_id})
    except IntegrityError as error:  # the file was deleted just then
        raise NotFound("There is no such file.") from error
    if not made:
        raise NotFound("There is no such file.")
    return _with_url(share, token)


def reissue(share_id: UUID) -> ShareLink:
    """Give a link another token: an earlier request made it, and nobody was told the first.

    Raises:
        NotFound: the file has been deleted since.
    """
    token = _new_token()
    statement = update(ShareLink).where(ShareLink.id == share_id).values(token_sha256=_hash(token))
    with transaction():
        share = db.session.scalar(statement.returning(ShareLink), execution_options={"populate_existing": True})
    if share is None:
        raise NotFound("There is no such link.")
    return _with_url(share, token)


def list_shares(file_id: UUID, *, owner_id: UUID, page: PageRequest) -> Page[ShareLink]:
    """Return a page of the links to a file that were not revoked.

    Raises:
        NotFound: there is no such file of this owner.
    """
    get_own(file_id, owner_id=owner_id)
    statement = select(ShareLink).where(ShareLink.file_id == file_id, ShareLink.revoked_at.is_(None))
    return paginate(statement, page, sorts=SHARE_SORTS, tiebreaker=ShareLink.id, owner=(owner_id, file_id))


def revoke(share_id: UUID, *, file_id: UUID, owner_id: UUID) -> None:
    """End a link at once.

    Raises:
        NotFound: also when it was revoked before.
    """
    get_own(file_id, owner_id=owner_id)
    link = (ShareLink.id == share_id, ShareLink.file_id == file_id, ShareLink.revoked_at.is_(None))
    statement = update(ShareLink).where(*link).values(revoked_at=utcnow()).returning(ShareLink.id)
    with transaction():
        if db.session.scalar(statement) is None:
            raise NotFound("There is no such link.")


def find_shared(token: str) -> tuple[ShareLink, File]:
    """Return the link with this token and the file it leads to; nothing is counted.

    Raises:
        NotFound: there never was such a link, or its file is gone. ShareExpired. ObjectMissing: its bytes are lost.
    """
    is_there = File.status.in_([FileStatus.READY, FileStatus.MISSING])
    found = db.session.execute(
        select(ShareLink, File, _is_live().label("live"))
        .join(File, File.id == ShareLink.file_id)
        .where(ShareLink.token_sha256 == _hash(token), is_there)
    ).first()
    if found is None:
        raise NotFound("There is no such link.")
    if not found.live:
        raise ShareExpired()
    if found.File.status is FileStatus.MISSING:
        raise ObjectMissing()
    return found.ShareLink, found.File


def count_download(share_id: UUID) -> None:
    """Count a download, if the link allows one more; of several at once the database lets no more through.

    Raises:
        ShareExpired.
    """
    statement = update(ShareLink).where(ShareLink.id == share_id, _is_live())
    with transaction():
        counted = statement.values(downloads=ShareLink.downloads + 1).returning(ShareLink.id)
        if db.session.scalar(counted) is None:
            raise ShareExpired()


def _is_live() -> ColumnElement[bool]:
    has_downloads_left = or_(ShareLink.max_downloads.is_(None), ShareLink.downloads < ShareLink.max_downloads)
    return and_(ShareLink.revoked_at.is_(None), ShareLink.expires_at > utcnow(), has_downloads_left)


def _with_url(share: ShareLink, token: str) -> ShareLink:
    share.url = f"{settings.public_url}/v1/shares/{token}"
    return share


def _new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
