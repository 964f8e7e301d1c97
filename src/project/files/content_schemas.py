"""The shapes around the content of a file: how it is wanted, signed URLs, and links that share it."""

from marshmallow import fields

from project.files import signed_urls, thumbnails
from project.files.models import SHARE_SORTS
from project.list_queries import page_query
from project.schemas import Id, Integer, Length, OneOf, OutSchema, QueryInteger, Range, Schema, String, Timestamp

DISPOSITIONS = ("attachment", "inline")
_ID = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
_DAY = 24 * 3600
_TIME = "2030-01-31T12:00:00.000000Z"


def _expires_in(default: int, longest: int) -> Integer:
    documented = {"description": "Seconds.", "example": default}
    return Integer(load_default=default, validate=Range(1, longest), metadata=documented)


class ContentQuery(Schema):
    """How content is wanted, and the signature of a signed URL."""

    disposition = String(
        validate=OneOf(DISPOSITIONS),
        metadata={"description": "`inline` to show it, where its type is safe to show; else it is a download."},
    )
    # As they come: what was not signed by us is no such file, whatever it looks like.
    exp = fields.String(metadata={"description": "Of a signed URL."})
    sig = fields.String(metadata={"description": "Of a signed URL."})


class ThumbnailQuery(ContentQuery):
    """Which thumbnail is wanted."""

    size = QueryInteger(
        load_default=256, validate=OneOf(thumbnails.SIZES), metadata={"description": "The longest side, in pixels."}
    )
    format = String(load_default="webp", validate=OneOf(thumbnails.FORMATS))


class ShareQuery(Schema):
    """How shared content is wanted."""

    disposition = String(validate=OneOf(DISPOSITIONS))


class SignedUrlCreate(Schema):
    """What a signed URL is for; with `thumbnail`, a size, it shows the thumbnail."""

    expires_in = _expires_in(signed_urls.DEFAULT_SECONDS, signed_urls.MAX_SECONDS)
    disposition = String(validate=OneOf(DISPOSITIONS), metadata={"example": "inline"})
    size = Integer(data_key="thumbnail", validate=OneOf(thumbnails.SIZES), metadata={"example": 256})


class SignedUrlOut(OutSchema):
    """A URL that anyone may read with until it expires."""

    url = fields.String(required=True, metadata={"format": "uri", "example": "https://api.example.com/v1/files/…"})
    expires_at = Timestamp(required=True, metadata={"example": _TIME})


class ShareCreate(Schema):
    """How long and how often a link may be used."""

    expires_in = _expires_in(7 * _DAY, 30 * _DAY)
    max_downloads = Integer(allow_none=True, validate=Range(1, 2**31 - 1), metadata={"example": 10})
    label = String(allow_none=True, validate=Length(1, 100), metadata={"example": "for Ben"})


class ShareOut(OutSchema):
    """A link to a file. Where it leads is told only once, when it is made."""

    id = Id(required=True, metadata={"example": _ID})
    expires_at = Timestamp(required=True, metadata={"example": _TIME})
    max_downloads = fields.Integer(required=True, allow_none=True, metadata={"example": 10})
    downloads = fields.Integer(required=True, metadata={"example": 0})
    label = fields.String(required=True, allow_none=True, metadata={"example": "for Ben"})
    created_at = Timestamp(required=True, metadata={"example": _TIME})


class NewShareOut(ShareOut):
    """A link to a file, with its URL."""

    url = fields.String(required=True, metadata={"format": "uri", "example": "https://api.example.com/v1/shares/…"})


ShareListQuery = page_query(SHARE_SORTS)
