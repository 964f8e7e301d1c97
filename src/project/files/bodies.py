"""Uploads as they come over HTTP: forms with a file and raw bodies, made into what the pipeline takes."""

import base64
import re
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import IO, TYPE_CHECKING, Any, cast

from flask import Request, g, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from project.blueprint import Blueprint
from project.config import settings
from project.database import give_back
from project.errors import BadRequest, IncompleteBody, Invalid, PayloadTooLarge, UnsupportedMediaType
from project.files import quota, uploads
from project.files.media_types import OCTET_STREAM, parse_declared
from project.files.models import UploadMethod
from project.files.parts import BLOCK_SIZE, Part
from project.files.schemas import FormFile
from project.marks import mark
from project.security import principal
from project.validation import REPEATED, Message, field_errors

if TYPE_CHECKING:
    from werkzeug.formparser import TStreamFactory

# What a form may have around its file: boundaries, headers, the other fields.
FRAMING = 64 * 1024
MAX_FORM_PARTS = 20
# Of one field, and of what the parser holds while it looks for a boundary.
MAX_FORM_MEMORY = 256 * 1024

# What the parser puts in place of bytes that are not UTF-8.
UNDECODABLE = "\ufffd"

# A member of a dictionary of byte sequences (RFC 8941 §3.2, §3.3.5), as in `sha-256=:…:`.
_DIGEST = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?:;[^,]*)?[ \t]*(?:,|$)")


class InvalidDigest(BadRequest):
    """400: Content-Digest or Repr-Digest cannot be read (RFC 9530)."""

    code = "invalid_digest"
    message = "The digest header is malformed."
    cure = "Send `Content-Digest: sha-256=:<base64 of the 32 bytes>:`, or leave it out."


def declared_body() -> list[Any]:
    """Return what makes two uploads the same request: the parameters, the length and the digest that were declared."""
    headers = [request.headers.get(name) for name in ("Content-Digest", "Repr-Digest")]
    return [request.query_string.decode("latin-1"), request.content_length, *headers]


def raw_body(view: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse, before anything is read, a body that cannot become a file (a decorator above `arguments`).

    Raises:
        UnsupportedMediaType, FileTooLarge, InvalidDigest.
    """

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _refuse_encoded(request)
        if parse_declared(request.content_type) is None:
            raise UnsupportedMediaType("Send the Content-Type of the file.")
        uploads.check_size(request.content_length or 0)
        expected_sha256()
        return view(*args, **kwargs)

    return mark(wrapper, raw_body=True, body_errors=[InvalidDigest])


def describe_raw(query: dict[str, Any]) -> uploads.Description:
    """Return what the headers and the parameters say of a raw body."""
    return uploads.Description(
        UploadMethod.RAW,
        declared_type=parse_declared(request.content_type) or OCTET_STREAM,
        sha256=expected_sha256(),
        sha256_pointer="/header/Content-Digest",
        **query,
    )


def raw_blocks() -> Iterator[bytes]:
    """Give the body of the request block by block."""
    return iter(lambda: request.stream.read(BLOCK_SIZE), b"")


def raw_length() -> int | None:
    """Return the number of bytes that the body will have; None when it is chunked and says so only at its end."""
    return None if "Transfer-Encoding" in request.headers else request.content_length or 0


def expected_sha256() -> str | None:
    """Return the SHA-256 that the headers promise, in hexadecimal; other algorithms are ignored (RFC 9530 §2).

    Raises:
        InvalidDigest: one is malformed, or they disagree.
    """
    found = {digest for name in ("Content-Digest", "Repr-Digest") if (digest := _sha256_of(name))}
    if len(found) > 1:
        raise InvalidDigest("The digest headers promise different bytes.")
    return found.pop() if found else None


def _sha256_of(name: str) -> str | None:
    header = request.headers.get(name)
    if header is None:
        return None
    members = dict(_DIGEST.findall(header))
    if not members or _DIGEST.sub("", header):
        raise InvalidDigest()
    if "sha-256" not in members:
        return None
    try:
        digest = base64.b64decode(members["sha-256"], validate=True)
    except ValueError as error:
        raise InvalidDigest() from error
    if len(digest) != 32:
        raise InvalidDigest("A SHA-256 has 32 bytes.")
    return digest.hex()


@Blueprint.ARGUMENTS_PARSER.location_loader("upload")
def load_form(req: Request, _schema: object) -> dict[str, Any]:
    """Read a form with a file: its fields by name, the file as a FormFile whose bytes are on disk.

    Raises:
        UnsupportedMediaType.
        FileTooLarge, QuotaExceeded: before anything is read, or as soon as a body in chunks shows it.
        BadRequest: there is no boundary, or a part has a name that is not UTF-8 (RFC 7578 §5.1).
        IncompleteBody: the form ends before its last boundary, or is malformed.
        PayloadTooLarge: it has too many parts, or a field that is too long.
        Invalid: a field was sent twice.
    """
    _refuse_encoded(req)
    if req.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("Send `Content-Type: multipart/form-data`.")
    if not req.mimetype_params.get("boundary", "").isascii() or not req.mimetype_params.get("boundary"):
        raise BadRequest("The Content-Type of the form has no boundary.")
    room = _room_for(req.content_length)
    give_back()
    # With a Content-Length the file cannot be larger than this; without one it is cut there.
    new_part = cast("TStreamFactory", partial(_new_part, room + FRAMING))
    body = cast("IO[bytes]", _Bounded(req))
    parser = FormDataParser(new_part, MAX_FORM_MEMORY, silent=False, max_form_parts=MAX_FORM_PARTS)
    try:
        _, texts, files = parser.parse(body, req.mimetype, req.content_length, req.mimetype_params)
    except UnicodeDecodeError as error:
        raise BadRequest("The headers of a part are not UTF-8.") from error
    except ValueError as error:
        raise IncompleteBody("The form is malformed, or ends before its last boundary.") from error
    except RequestEntityTooLarge as error:
        raise PayloadTooLarge("The form has too many parts, or a field that is too long.") from error
    return _fields([*texts.items(multi=True), *((name, _form_file(file)) for name, file in files.items(multi=True))])


def discard_parts(_error: BaseException | None = None) -> None:
    """Remove the parts of this request that did not become files; runs when it ends."""
    for part in g.pop("parts", []):
        part.discard()


def _refuse_encoded(req: Request) -> None:
    is_plain = req.headers.get("Content-Encoding", "identity").lower() == "identity"
    # Servers take chunks apart, and hand on what else was done for the transfer (RFC 9112 §7) as it came.
    is_whole = req.headers.get("Transfer-Encoding", "chunked").lower() == "chunked"
    if not (is_plain and is_whole):
        raise UnsupportedMediaType("Compressed bodies are not accepted.")


def _room_for(length: int | None) -> int:
    """Return how much the account may still store; refuse a form that says itself that its file cannot fit."""
    least = (length or 0) - FRAMING
    uploads.check_size(least)
    room = quota.usage(principal().id).available
    if least > room:
        raise quota.QuotaExceeded()
    return room


def _new_part(room: int, **_kwargs: Any) -> Part:
    part = uploads.new_part(room=room)
    g.setdefault("parts", []).append(part)
    return part


class _Bounded:
    """The body of a form, ended by an error when there is more of it than a form with a file can have."""

    def __init__(self, req: Request) -> None:
        self._stream = req.stream
        self._left = settings.files.max_size + FRAMING

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise uploads.FileTooLarge()
        return data


def _form_file(file: FileStorage) -> FormFile | str:
    part = cast(Part, file.stream)
    part.close()
    if not file.filename and not part.size:
        return ""  # how browsers send a form in which no file was chosen
    return FormFile(part, file.filename or "", parse_declared(file.content_type) or OCTET_STREAM)


def _fields(pairs: list[tuple[str | None, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if (name or "") in found:
            again = {name or "": Message("Send this field once.", REPEATED)}
            raise Invalid(errors=field_errors(again))
        if isinstance(value, str) and UNDECODABLE in value:
            raise BadRequest("A field of the form is not UTF-8.")
        found[name or ""] = value
    return found
