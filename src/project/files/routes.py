"""HTTP for files: uploading, finding, changing and deleting them, and quotas."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from project import etags
from project.blueprint import Blueprint
from project.config import settings
from project.errors import Forbidden, NotFound
from project.etags import Expected
from project.files import bodies, direct, quota, service, thumbnails, uploads
from project.files.bodies import raw_body
from project.files.direct import DirectFile, DirectUploadUnsupported, UploadIncomplete
from project.files.models import File, UploadMethod
from project.files.quota import QuotaExceeded, Usage
from project.files.schemas import (
    FILE_REQUIRED,
    DirectUploadCreate,
    DirectUploadOut,
    FileOut,
    FileQuery,
    FilesConfigOut,
    FileUpdate,
    FileUpload,
    FormFile,
    QuotaUpdate,
    RawQuery,
    UsageOut,
)
from project.files.service import NotReady
from project.files.storage import storage
from project.files.uploads import DIGEST_MISMATCH, EMPTY_FILE, Description, FileTooLarge, TypeNotAllowed
from project.idempotency import idempotent
from project.limits import limit
from project.list_queries import whose
from project.pagination import Page
from project.security import Role, login_required, principal, role_required

blueprint = Blueprint("files", __name__, url_prefix="/files", description="One's own files, and all metadata for staff")
blueprint.teardown_request(bodies.discard_parts)


@blueprint.get("/config")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, FilesConfigOut)
def get_files_config() -> dict[str, Any]:
    """Show what may be uploaded, and how."""
    return {
        "max_size": settings.files.max_size,
        "allowed_types": settings.files.allowed_types,
        "thumbnail_sizes": thumbnails.SIZES,
        "direct_upload": storage().direct,
    }


@blueprint.get("/usage")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, UsageOut)
def get_usage() -> Usage:
    """Show what one has stored, and what there is room for."""
    return quota.usage(principal().id)


@blueprint.post("")
@limit("write")
@login_required
@idempotent(resume=service.get_any, sent=bodies.declared_body)
@blueprint.arguments(FileUpload, location="upload")
@blueprint.response(HTTPStatus.CREATED, FileOut, location="/v1/files/{0.id}")
@etags.conditional
@blueprint.raises(FileTooLarge, QuotaExceeded, TypeNotAllowed, fields=(FILE_REQUIRED, EMPTY_FILE, DIGEST_MISMATCH))
def upload_file(form: dict[str, Any], resumed: File | None) -> File:
    """Upload a file in a form. What it is, is found out from its bytes; with `sha256` they are checked."""
    file: FormFile = form.pop("file")
    told = Description(UploadMethod.MULTIPART, file.filename, file.declared_type, **form)
    return resumed or uploads.upload_part(told, file.part, owner_id=principal().id)


@blueprint.post("/raw")
@limit("write")
@login_required
@idempotent(resume=service.get_any, sent=bodies.declared_body)
@raw_body
@blueprint.arguments(RawQuery, location="query")
@blueprint.response(HTTPStatus.CREATED, FileOut, location="/v1/files/{0.id}")
@etags.conditional
@blueprint.raises(FileTooLarge, QuotaExceeded, TypeNotAllowed, fields=(EMPTY_FILE, DIGEST_MISMATCH))
def upload_raw_file(query: dict[str, Any], resumed: File | None) -> File:
    """Upload a file whose bytes are the body, and whose declared type is the Content-Type."""
    return resumed or uploads.upload_raw(
        bodies.describe_raw(query), bodies.raw_blocks(), owner_id=principal().id, length=bodies.raw_length()
    )


@blueprint.post("/direct")
@limit("write")
@login_required
@idempotent(resume=direct.resume)
@blueprint.arguments(DirectUploadCreate)
@blueprint.response(HTTPStatus.CREATED, DirectUploadOut, location="/v1/files/{0.file.id}")
@blueprint.raises(DirectUploadUnsupported, FileTooLarge, QuotaExceeded, TypeNotAllowed)
def start_direct_upload(data: dict[str, Any], resumed: DirectFile | None) -> DirectFile:
    """Get the permission to put exactly these bytes straight into storage (S3 only)."""
    size, declared_type = data.pop("size"), data.pop("content_type")
    told = Description(UploadMethod.DIRECT, declared_type=declared_type, **data)
    return resumed or direct.start(told, size=size, owner_id=principal().id)


@blueprint.post("/<uuid:file_id>/complete")
@limit("write")
@login_required
@blueprint.response(HTTPStatus.OK, FileOut)
@etags.conditional
@blueprint.raises(NotFound, UploadIncomplete, TypeNotAllowed, fields=(DIGEST_MISMATCH,))
def complete_direct_upload(file_id: UUID) -> File:
    """Say that the bytes are in storage. They are hashed again; if they are others, the upload is over."""
    return direct.complete(file_id, owner_id=principal().id)


@blueprint.get("")
@limit("read")
@login_required
@blueprint.arguments(FileQuery, location="query")
@blueprint.response(HTTPStatus.OK, FileOut(many=True))
@blueprint.raises(Forbidden)
def list_files(query: dict[str, Any]) -> Page[File]:
    """List and search one's own ready files; staff see those of others with `scope` or `user_id`."""
    return service.list_files(reader_id=principal().id, owner_id=whose(principal(), query), **query)


@blueprint.get("/<uuid:file_id>")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, FileOut)
@etags.conditional
@blueprint.raises(NotFound)
def get_file(file_id: UUID) -> File:
    """Show a file of one's own, or for staff anyone's, without its content."""
    return service.get_file(file_id, reader=principal())


@blueprint.patch("/<uuid:file_id>")
@limit("write")
@login_required
@blueprint.arguments(FileUpdate)
@blueprint.response(HTTPStatus.OK, FileOut)
@etags.conditional
@etags.precondition
@blueprint.raises(NotFound, Forbidden)
def update_file(data: dict[str, Any], file_id: UUID, expected: Expected) -> File:
    """Change what is said of a file of one's own; its content never changes."""
    return service.update_file(file_id, caller=principal(), expected=expected, **data)


@blueprint.delete("/<uuid:file_id>")
@limit("write")
@login_required
@blueprint.response(HTTPStatus.NO_CONTENT)
@etags.precondition
@blueprint.raises(NotFound, Forbidden, NotReady)
def delete_file(file_id: UUID, expected: Expected) -> None:
    """Delete a file of one's own, or for admins anyone's, for good. Its bytes count until they are removed."""
    service.delete_file(file_id, caller=principal(), expected=expected)


@blueprint.get("/quotas/<uuid:user_id>")
@limit("read")
@role_required(Role.ADMIN)
@blueprint.response(HTTPStatus.OK, UsageOut)
@blueprint.raises(NotFound)
def get_quota(user_id: UUID) -> Usage:
    """Show what an account has stored, and its quota (admins)."""
    return quota.get_usage(user_id)


@blueprint.put("/quotas/<uuid:user_id>")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.arguments(QuotaUpdate)
@blueprint.response(HTTPStatus.OK, UsageOut)
@blueprint.raises(NotFound)
def set_quota(data: dict[str, Any], user_id: UUID) -> Usage:
    """Give an account a quota of its own, or the default again (admins). What is stored stays."""
    return quota.set_quota(user_id, actor_id=principal().id, **data)
