"""HTTP for the content of files: downloads, thumbnails, signed URLs, and links that share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any
from uuid import UUID

from flask import Response

from project.blueprint import Blueprint
from project.errors import NotFound, PreconditionFailed
from project.files import delivery, service, shares, signed_urls, variants
from project.files.content_schemas import (
    ContentQuery,
    NewShareOut,
    ShareCreate,
    ShareListQuery,
    ShareOut,
    ShareQuery,
    SignedUrlCreate,
    SignedUrlOut,
    ThumbnailQuery,
)
from project.files.delivery import Content, RangeNotSatisfiable
from project.files.models import File, FileVariant, ShareLink, Visibility
from project.files.service import NotReady
from project.files.shares import ShareExpired
from project.files.signed_urls import SignedUrl
from project.files.storage import ObjectMissing
from project.files.thumbnails import ImageTooLarge, NotAnImage
from project.idempotency import idempotent
from project.limits import limit
from project.marks import mark
from project.pagination import Page
from project.security import find_principal, login_optional, login_required, principal, public

blueprint = Blueprint("contents", __name__, url_prefix="/files", description="The content of files")
share_blueprint = Blueprint("shares", __name__, url_prefix="/shares", description="What was shared by a link")

BYTES = {"type": "string", "format": "binary"}
serves_content = partial(mark, content=True)


@blueprint.get("/<uuid:file_id>/content")
@limit("download")
@login_optional
@blueprint.arguments(ContentQuery, location="query")
@blueprint.response(HTTPStatus.OK, BYTES, content_type="*/*")
@serves_content
@blueprint.raises(NotFound, NotReady, ObjectMissing, PreconditionFailed, RangeNotSatisfiable)
def get_content(query: dict[str, Any], file_id: UUID) -> Response:
    """Download a file: one's own, a public one, or any with a signed URL."""
    file = _readable(file_id, signed_urls.CONTENT, query)
    with _lost_unless_deleted(file):
        return delivery.send(_content(file, query.get("disposition", "")))


@blueprint.get("/<uuid:file_id>/thumbnail")
@limit("download")
@login_optional
@blueprint.arguments(ThumbnailQuery, location="query")
@blueprint.response(HTTPStatus.OK, BYTES, content_type="image/*")
@serves_content
@blueprint.raises(NotFound, NotReady, ObjectMissing, PreconditionFailed, RangeNotSatisfiable, NotAnImage, ImageTooLarge)
def get_thumbnail(query: dict[str, Any], file_id: UUID) -> Response:
    """Look at a small version of a picture, made when it is first asked for."""
    size, kind = query["size"], query["format"]
    file = _readable(file_id, f"{size}-{kind}", query)
    with _lost_unless_deleted(file):
        variant = variants.get_thumbnail(file, size=size, kind=kind)
        return delivery.send(_thumbnail(file, variant, query.get("disposition", "")))


@blueprint.post("/<uuid:file_id>/signed-url")
@limit("write")
@login_required
@blueprint.arguments(SignedUrlCreate)
@blueprint.response(HTTPStatus.OK, SignedUrlOut)
@blueprint.raises(NotFound)
def sign_url(data: dict[str, Any], file_id: UUID) -> SignedUrl:
    """Get a URL that anyone may read the file with for a while, as in `<img>`."""
    file = service.get_own(file_id, owner_id=principal().id)
    return signed_urls.sign(file.id, **data)


@blueprint.post("/<uuid:file_id>/shares")
@limit("write")
@login_required
@idempotent(resume=shares.reissue)
@blueprint.arguments(ShareCreate)
@blueprint.response(HTTPStatus.CREATED, NewShareOut, location="/v1/files/{0.file_id}/shares/{0.id}")
@blueprint.raises(NotFound)
def create_share(data: dict[str, Any], file_id: UUID, resumed: ShareLink | None) -> ShareLink:
    """Make a link to a file of one's own. Its URL is told only now; it can be revoked."""
    return resumed or shares.create(file_id, owner_id=principal().id, **data)


@blueprint.get("/<uuid:file_id>/shares")
@limit("read")
@login_required
@blueprint.arguments(ShareListQuery, location="query")
@blueprint.response(HTTPStatus.OK, ShareOut(many=True))
@blueprint.raises(NotFound)
def list_shares(query: dict[str, Any], file_id: UUID) -> Page[ShareLink]:
    """List the links to a file of one's own that were not revoked."""
    return shares.list_shares(file_id, owner_id=principal().id, **query)


@blueprint.delete("/<uuid:file_id>/shares/<uuid:share_id>")
@limit("write")
@login_required
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(NotFound)
def revoke_share(file_id: UUID, share_id: UUID) -> None:
    """End a link to a file of one's own, at once."""
    shares.revoke(share_id, file_id=file_id, owner_id=principal().id)


@share_blueprint.get("/<token>")
@limit("download")
@public
@share_blueprint.arguments(ShareQuery, location="query")
@share_blueprint.response(HTTPStatus.OK, BYTES, content_type="*/*")
@serves_content
@share_blueprint.raises(NotFound, ShareExpired, ObjectMissing, PreconditionFailed, RangeNotSatisfiable)
def get_shared_content(query: dict[str, Any], token: str) -> Response:
    """Download a shared file. One that starts at its first byte counts."""
    share, file = shares.find_shared(token)
    content = replace(_content(file, query.get("disposition", "")), cache_control="private, no-store")
    with _lost_unless_deleted(file):
        return delivery.send(content, on_start=partial(shares.count_download, share.id))


@contextmanager
def _lost_unless_deleted(file: File) -> Iterator[None]:
    """Tell bytes that are lost from those of a file that was deleted while the request was answered."""
    try:
        yield
    except ObjectMissing:
        service.get_any(file.id)
        raise


def _readable(file_id: UUID, variant: str, query: dict[str, Any]) -> File:
    """Return the file if the caller or the signature may read it; a wrong signature finds nothing."""
    reader = find_principal()
    signed = "exp" in query or "sig" in query
    if signed and not signed_urls.is_valid(
        file_id,
        variant=variant,
        disposition=query.get("disposition", ""),
        expires=query.get("exp", ""),
        signature=query.get("sig", ""),
    ):
        raise NotFound("There is no such file.")
    return service.get_readable(file_id, reader_id=reader.id if reader else None, signed=signed)


def _thumbnail(file: File, variant: FileVariant, disposition: str) -> Content:
    """Say of a thumbnail what is said of its file, but for what is its own."""
    return replace(
        _content(file, disposition or "inline"),
        key=variant.storage_key,
        size=variant.size,
        content_type=variant.content_type,
        etag=f"{file.sha256}-{variant.spec}",
        sha256=None,
        filename=f"{file.filename}.{variant.spec.rpartition('-')[2]}",
    )


def _content(file: File, disposition: str) -> Content:
    is_public = file.visibility is Visibility.PUBLIC
    return Content(
        key=file.storage_key,
        size=file.size,
        content_type=file.content_type,
        etag=str(file.sha256),
        sha256=file.sha256,
        modified=file.ready_at or file.created_at,
        filename=file.filename,
        disposition=disposition or "attachment",
        cache_control="public, max-age=300" if is_public else "private, no-cache",
        resource_policy="cross-origin" if is_public else "same-site",
    )
