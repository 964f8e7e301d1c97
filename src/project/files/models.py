"""Files, what each account has stored, links that share a file, and thumbnails made from it.

The row is the truth about a file; storage is a map from random keys to bytes. Content never changes: whoever wants
other bytes uploads another file, and so the SHA-256 is a strong ETag for ever.
"""

from datetime import datetime
from enum import StrEnum
from typing import cast
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, String, Table, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Base, Record
from project.indexes import only, trigrams

_READY = "status = 'ready'"  # those that lists show


class FileStatus(StrEnum):
    """What a file is at. Only `ready` ones can be downloaded; only the modules of this package change it.

    pending → ready, when the bytes are stored and checked, or the row goes. ready, missing → deleting, by its owner,
    an administrator or the erasure of the account; then the bytes go, and the row with them. ready → missing, when
    a sweep finds no bytes, and back when one finds them again.
    """

    PENDING = "pending"
    READY = "ready"
    DELETING = "deleting"
    MISSING = "missing"


class Visibility(StrEnum):
    """Who may read the content: its owner, or everybody who knows the address."""

    PRIVATE = "private"
    PUBLIC = "public"


class UploadMethod(StrEnum):
    """How the bytes came: in a form, as a raw body, or from the client straight to storage."""

    MULTIPART = "multipart"
    RAW = "raw"
    DIRECT = "direct"


class File(Record):
    """A file. `size` is what it declares while it is pending; `reserved` what it holds of the quota until then."""

    __tablename__ = "files"

    # No foreign key: an account can be erased at once, and its files are purged afterwards.
    owner_id: Mapped[UUID | None]
    status: Mapped[FileStatus] = mapped_column(default=FileStatus.PENDING)
    filename: Mapped[str] = mapped_column(String(255))  # at most 255 bytes of UTF-8
    size: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger, default=0)
    content_type: Mapped[str] = mapped_column(String(255))
    declared_type: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str | None] = mapped_column(String(64))  # in hexadecimal
    storage_key: Mapped[str] = mapped_column(String(64), unique=True)
    visibility: Mapped[Visibility] = mapped_column(default=Visibility.PRIVATE)
    purpose: Mapped[str | None] = mapped_column(String(40))
    # The attribute `metadata` of a model is SQLAlchemy's.
    labels: Mapped[dict[str, str]] = mapped_column("metadata", JSON, default=dict)
    width: Mapped[int | None]  # in pixels, of a picture
    height: Mapped[int | None]
    upload_method: Mapped[UploadMethod]
    version: Mapped[int] = mapped_column(default=1)
    ready_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("size >= 0 AND reserved >= 0", name="sizes"),
        CheckConstraint("status = 'pending' OR reserved = 0", name="only_pending_reserves"),
        CheckConstraint("status <> 'ready' OR (sha256 IS NOT NULL AND ready_at IS NOT NULL)", name="ready_is_whole"),
        Index("ix_files_owner_id_status_created_at_id", "owner_id", "status", "created_at", "id"),
        Index("ix_files_status_created_at_id", "status", "created_at", "id"),
        Index("ix_files_status_updated_at", "status", "updated_at"),
        Index("ix_files_owner_id_size_id_ready", "owner_id", "size", "id", **only(_READY)),
        Index("ix_files_owner_id_filename_id_ready", "owner_id", "filename", "id", **only(_READY)),
        Index("ix_files_size_id_ready", "size", "id", **only(_READY)),
        Index("ix_files_filename_id_ready", "filename", "id", **only(_READY)),
        Index("ix_files_purpose_created_at_id", "purpose", "created_at", "id", **only("purpose IS NOT NULL")),
        Index("ix_files_created_at_id_public", "created_at", "id", **only("visibility = 'public'")),
        Index(
            "ix_files_content_type_created_at_id_ready",
            "content_type",
            "created_at",
            "id",
            # For groups of types, `image/%`, whatever the locale.
            postgresql_ops={"content_type": "varchar_pattern_ops"},
            **only(_READY),
        ),
        trigrams("ix_files_filename_trigrams", "filename"),
    )


class DirectUpload(Base):
    """The permission to put the bytes of a pending file at `incoming_key`.

    It is open until somebody completes it (`completing_at`; one that died is taken over); then the row goes, as it
    does with the file when it is aborted or expires. The bytes are moved to the file's own key before they are
    checked, so that whoever still holds the URL cannot change what was checked.
    """

    __tablename__ = "direct_uploads"

    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"), primary_key=True)
    incoming_key: Mapped[str] = mapped_column(String(80), unique=True)
    completing_at: Mapped[datetime | None]
    expires_at: Mapped[datetime]


class StorageUsage(Base):
    """What an account has stored and reserved, in bytes. Changed only by guarded UPDATEs (quota.py)."""

    __tablename__ = "storage_usage"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    used: Mapped[int] = mapped_column(BigInteger, default=0)
    reserved: Mapped[int] = mapped_column(BigInteger, default=0)
    file_count: Mapped[int] = mapped_column(default=0)
    quota: Mapped[int | None] = mapped_column(BigInteger)  # None: FILES_QUOTA

    __table_args__ = (CheckConstraint("used >= 0 AND reserved >= 0 AND file_count >= 0 AND quota >= 0", name="counts"),)


class ShareLink(Record):
    """A revocable link to a file. Of its token only the SHA-256 is kept."""

    __tablename__ = "share_links"

    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    label: Mapped[str | None] = mapped_column(String(100))
    expires_at: Mapped[datetime]
    max_downloads: Mapped[int | None]
    downloads: Mapped[int] = mapped_column(default=0)
    revoked_at: Mapped[datetime | None]

    # Not a column: known only when the link is made.
    url = ""

    __table_args__ = (
        CheckConstraint("max_downloads > 0 AND downloads <= max_downloads", name="downloads"),
        Index("ix_share_links_file_id_created_at_id", "file_id", "created_at", "id"),
    )


class FileVariant(Record):
    """A thumbnail, made when it was first asked for; `spec` is such as `256-webp`. Not counted in the quota."""

    __tablename__ = "file_variants"

    file_id: Mapped[UUID] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    spec: Mapped[str] = mapped_column(String(16))
    storage_key: Mapped[str] = mapped_column(String(64), unique=True)
    size: Mapped[int] = mapped_column(BigInteger)
    content_type: Mapped[str] = mapped_column(String(255))

    __table_args__ = (UniqueConstraint("file_id", "spec"),)


# The tables, for statements about rows.
FILES, SHARE_LINKS = cast(Table, File.__table__), cast(Table, ShareLink.__table__)

SORTS = {"created_at": File.created_at, "size": File.size, "filename": File.filename}
SHARE_SORTS = {"created_at": ShareLink.created_at}
