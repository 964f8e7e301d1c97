"""The shapes of files, uploads and quotas in requests and answers."""

from dataclasses import dataclass
from typing import Any

from marshmallow import ValidationError, fields, validate
from typing_extensions import override

from project.config import settings
from project.errors import field_code
from project.files import thumbnails
from project.files.media_types import DECLARED, parse_declared
from project.files.models import SORTS, File, FileStatus, Visibility
from project.files.parts import Part
from project.json import InvalidJson, loads
from project.list_queries import page_query, scope_filters
from project.schemas import (
    MAX_INT64,
    Choice,
    Id,
    Integer,
    Length,
    Metadata,
    OutSchema,
    Range,
    Schema,
    String,
    Timestamp,
)
from project.validation import FORMAT, Message

FILE_REQUIRED = field_code("file_required", "A file is required.", "Send one part named `file`, with a file name.")
_ID = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
_TIME = "2030-01-31T12:00:00.000000Z"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_GIB = 1 << 30


@dataclass(frozen=True)
class FormFile:
    """A file in a form: what the client says of it, and its bytes."""

    part: Part
    filename: str
    declared_type: str


class FileField(fields.Field[FormFile]):
    """The file of a form."""

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "required": Message("A file is required.", FILE_REQUIRED),
        "invalid": Message("This must be a file: a part with a file name.", FILE_REQUIRED),
    }

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> FormFile:
        if not isinstance(value, FormFile):
            raise self.make_error("invalid")
        return value


class MetadataText(Metadata):
    """Metadata in a form, as a JSON object written as text."""

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        try:
            return super()._deserialize(loads(value), attr, data, **kwargs)
        except InvalidJson as error:
            raise self.make_error("invalid") from error


class MediaType(String):
    """A media type such as image/png; parameters are dropped."""

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "format": "This must be a media type such as image/png.",
    }

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        found = parse_declared(super()._deserialize(value, attr, data, **kwargs))
        if found is None:
            raise self.make_error("format")
        return found


class Pattern(validate.Regexp):
    """A text that has a certain form from its beginning to its end.

    The expression goes into the OpenAPI document, so it has to mean the same in ECMA-262, which ends
    with `$` alone.
    """

    @override
    def __call__(self, value: Any) -> Any:
        # To Python alone `$` is also in front of a line break at the end.
        if self.regex.fullmatch(value) is None:
            raise ValidationError(self._format_error(value))
        return value

    def _format_error(self, value: str | bytes) -> str:
        return Message(super()._format_error(value), FORMAT)


def _filename(**options: Any) -> fields.String:
    # Of any characters and length: names are cleaned, never refused, and the size of a request is bounded anyway.
    return fields.String(metadata={"example": "holiday.jpg"}, **options)


def _purpose(**options: Any) -> String:
    return String(metadata={"example": "avatar"}, validate=Length(1, 40), **options)


def _sha256(**options: Any) -> String:
    form = Pattern(r"^[0-9a-f]{64}$", error="This must be 64 lower-case hexadecimal digits.")
    return String(validate=form, metadata={"example": _SHA256}, **options)


class FileOut(OutSchema):
    """A file, without its content."""

    id = Id(required=True, metadata={"example": _ID})
    filename = fields.String(required=True, metadata={"example": "holiday.jpg"})
    size = fields.Integer(required=True, metadata={"example": 482113, "description": "Bytes."})
    content_type = fields.String(
        required=True, metadata={"example": "image/jpeg", "description": "What the bytes are, as far as they say."}
    )
    declared_type = fields.String(
        required=True, metadata={"example": "image/jpeg", "description": "What the client said."}
    )
    sha256 = fields.String(required=True, allow_none=True, metadata={"example": _SHA256})
    status = Choice(FileStatus, required=True, metadata={"example": "ready"})
    visibility = Choice(Visibility, required=True, metadata={"example": "private"})
    purpose = fields.String(required=True, allow_none=True, metadata={"example": "avatar"})
    metadata = Metadata(required=True, attribute="labels")
    width = fields.Integer(required=True, allow_none=True, metadata={"example": 4032, "description": "Pixels."})
    height = fields.Integer(required=True, allow_none=True, metadata={"example": 3024, "description": "Pixels."})
    content_url = fields.Function(
        lambda file: _url(file, "content"),
        required=True,
        metadata={"type": "string", "format": "uri", "example": f"https://api.example.com/v1/files/{_ID}/content"},
    )
    thumbnail_url = fields.Function(
        lambda file: _url(file, "thumbnail") if file.content_type in thumbnails.PICTURES else None,
        required=True,
        metadata={
            "type": ["string", "null"],
            "format": "uri",
            "example": f"https://api.example.com/v1/files/{_ID}/thumbnail",
        },
    )
    owner_id = Id(required=True, allow_none=True, metadata={"example": _ID})
    created_at = Timestamp(required=True, metadata={"example": _TIME})
    updated_at = Timestamp(required=True, metadata={"example": _TIME})


def _url(file: File, what: str) -> str:
    return f"{settings.public_url}/v1/files/{file.id}/{what}"


class FileUpload(Schema):
    """A form with a file. `metadata` is a JSON object as text; with `sha256` the bytes are checked."""

    file = FileField(
        required=True, metadata={"type": "string", "format": "binary", "example": "(the bytes of the file)"}
    )
    visibility = Choice(Visibility, load_default=Visibility.PRIVATE, metadata={"example": "private"})
    purpose = _purpose()
    metadata = MetadataText()
    sha256 = _sha256()


class RawQuery(Schema):
    """What is said of a file whose bytes are the body."""

    filename = _filename(load_default="file")
    visibility = Choice(Visibility, load_default=Visibility.PRIVATE)
    purpose = _purpose()


class DirectUploadCreate(Schema):
    """What a client will put into storage by itself; exactly this is permitted."""

    filename = _filename(required=True)
    size = Integer(required=True, validate=Range(1, MAX_INT64), metadata={"example": 482113, "description": "Bytes."})
    content_type = MediaType(required=True, metadata={"example": "image/jpeg", "pattern": DECLARED})
    sha256 = _sha256(required=True)
    visibility = Choice(Visibility, load_default=Visibility.PRIVATE, metadata={"example": "private"})
    purpose = _purpose(allow_none=True)
    metadata = Metadata()


class PermissionOut(OutSchema):
    """How to send the bytes: this request, with all of these headers, before it expires."""

    method = fields.String(required=True, metadata={"example": "PUT"})
    url = fields.String(required=True, metadata={"format": "uri", "example": "https://bucket.s3.example.com/…"})
    headers = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, metadata={"example": {"If-None-Match": "*"}}
    )
    expires_at = Timestamp(required=True, metadata={"example": _TIME})


class DirectUploadOut(OutSchema):
    """A pending file and the permission to send its bytes."""

    file = fields.Nested(FileOut, required=True)
    upload = fields.Nested(PermissionOut, required=True)


class FileUpdate(Schema):
    """What an owner changes about a file; `metadata` is replaced as a whole."""

    filename = _filename()
    visibility = Choice(Visibility, metadata={"example": "public"})
    purpose = _purpose(allow_none=True)
    metadata = Metadata()


FileQuery = page_query(
    SORTS,
    visibility=Choice(Visibility),
    purpose=_purpose(),
    content_type=String(
        data_key="type",
        validate=Pattern(r"^[a-z0-9!#$&^_.+-]+/(\*|[a-z0-9!#$&^_.+-]+)$", error="Send image/png, or image/* for all."),
        metadata={"description": "A type, or a group such as `image/*`."},
    ),
    q=String(validate=Length(1, 200), metadata={"description": "Part of a file name."}),
    created_after=Timestamp(),
    **scope_filters(),
)


class FilesConfigOut(OutSchema):
    """What may be uploaded, and how."""

    max_size = fields.Integer(required=True, metadata={"example": 104857600, "description": "Bytes."})
    allowed_types = fields.List(fields.String(), required=True, metadata={"example": ["*/*"]})
    thumbnail_sizes = fields.List(fields.Integer(), required=True, metadata={"example": list(thumbnails.SIZES)})
    direct_upload = fields.Boolean(required=True, metadata={"example": False})


class UsageOut(OutSchema):
    """What an account has stored and may store, in bytes."""

    used = fields.Integer(required=True, metadata={"example": 482113})
    reserved = fields.Integer(required=True, metadata={"example": 0, "description": "Held by uploads under way."})
    quota = fields.Integer(required=True, metadata={"example": _GIB})
    available = fields.Integer(required=True, metadata={"example": _GIB - 482113})
    file_count = fields.Integer(required=True, metadata={"example": 1})


class QuotaUpdate(Schema):
    """A quota of an account's own, in bytes; null for the default."""

    quota = Integer(required=True, allow_none=True, validate=Range(0, MAX_INT64), metadata={"example": 10 * _GIB})
