"""Sending stored bytes over HTTP: the headers of content, conditions and ranges (RFC 9110), and who sends the bytes."""

import base64
import logging
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import IO, BinaryIO, cast

from flask import Response, request
from werkzeug.http import http_date, parse_date, parse_etags
from werkzeug.wsgi import wrap_file

from project.config import settings
from project.errors import AppError, PreconditionFailed
from project.file_settings import Delivery
from project.files import media_types, names
from project.files.storage import DirectStorage, ObjectMissing, storage

logger = logging.getLogger(__name__)

BLOCK = 64 * 1024  # bytes; what is read at once where the server has no sendfile
REDIRECT_SECONDS = 60
# Whatever the bytes are, a browser that shows them runs nothing and they belong to no origin.
SANDBOX = "default-src 'none'; sandbox"
# The locations of deploy/nginx/files.conf: one that reads the Range header, and one that does not.
NGINX_PART = "/_files/"
NGINX_WHOLE = "/_files-whole/"
# One range, from-to, from- or -length. Numbers of eighteen digits reach an exabyte; nginx stops at 2^63.
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)


class RangeNotSatisfiable(AppError):
    """416: the range begins behind the last byte."""

    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    code = "range_not_satisfiable"
    message = "The range lies outside of the content."
    cure = "Ask for a range within the length that Content-Range tells, or leave the Range header out."

    def __init__(self, size: int) -> None:
        super().__init__(headers={"Content-Range": f"bytes */{size}"})


@dataclass(frozen=True)
class Content:
    """Bytes that can be sent, and what is said of them."""

    key: str  # in storage
    size: int  # bytes
    content_type: str  # as stored; media_types.served_type makes the header of it
    etag: str  # the opaque part, without quotes; the same only for the same bytes
    sha256: str | None  # in hexadecimal; None: nothing is said of the digest
    modified: datetime  # aware; Last-Modified has whole seconds of it
    filename: str
    disposition: str  # what was asked for, "inline" or "attachment"; only harmless types are sent inline
    cache_control: str
    resource_policy: str  # Cross-Origin-Resource-Policy: which sites may embed it


def send(content: Content, *, on_start: Callable[[], None] | None = None) -> Response:
    """Answer the current GET or HEAD with content, as its conditions and its Range ask.

    `on_start` is called once, when nothing can go wrong any more and before an answer to a GET is made that has the
    first byte: 200, 206 from byte 0, and every redirect to storage, since what is fetched there nobody sees. What it
    raises is the answer.

    Raises:
        ObjectMissing: the bytes are not there, or not as many as there should be. Storage that sends them itself was
            not asked.
        PreconditionFailed: by If-Match or If-Unmodified-Since.
        RangeNotSatisfiable: the range lies outside of the content.
    """
    with ExitStack() as opened:
        # First of all: conditions count only where the answer would otherwise be a success (RFC 9110 §13.2.1).
        store = storage()
        file = None if store.direct else opened.enter_context(_open(content))
        status, part = _decide(content)
        if request.method != "GET" or status == HTTPStatus.NOT_MODIFIED:
            return Response(status=status, headers=_headers(content, status, part))
        if on_start is not None and (part.start == 0 or file is None):
            on_start()
        if file is None:
            return _redirect(content, cast(DirectStorage, store))
        response = Response(status=status, headers=_headers(content, status, part))
        if _nginx_sends():
            location = NGINX_PART if status == HTTPStatus.PARTIAL_CONTENT else NGINX_WHOLE
            response.headers["X-Accel-Redirect"] = location + content.key
            # Of this answer, which has no body; nginx says what belongs to the one it makes.
            del response.headers["Content-Length"], response.headers["Content-Range"]
            return response
        # From here on whoever sends the response closes the file.
        opened.pop_all()
        response.response = _body(file, part)
        response.direct_passthrough = True
        return response


def requested_range(header: str, size: int) -> range | None:
    """Return the positions of the bytes that a Range header asks for; None is the whole content.

    One range of bytes is honoured. Another unit has to be ignored (RFC 9110 §14.2); several ranges, and what is no
    range at all, may be and are.

    Raises:
        RangeNotSatisfiable: the range has no byte of the content.
    """
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix:
        part = range(max(size - int(suffix), 0), size)
    elif last and int(last) < int(first):
        return None
    else:
        part = range(int(first), min(int(last) + 1, size) if last else size)
    if not part:
        raise RangeNotSatisfiable(size)
    return part


def _open(content: Content) -> BinaryIO:
    try:
        file = storage().open(content.key)
    except ObjectMissing:
        logger.warning("file_lost", extra={"file": content.key})
        raise
    # Content-Length is a promise: a client would wait for the bytes that are missing.
    if file.seek(0, os.SEEK_END) != content.size:
        file.close()
        logger.warning("file_damaged", extra={"file": content.key})
        raise ObjectMissing()
    return file


def _decide(content: Content) -> tuple[HTTPStatus, range]:
    """Return 200, 206 or 304, and the positions of the bytes; the order is that of RFC 9110 §13.2.2."""
    sent = request.headers
    modified = content.modified.replace(microsecond=0)
    if "If-Match" in sent:
        if not parse_etags(sent["If-Match"]).contains(content.etag):
            raise PreconditionFailed()
    elif (date := _date("If-Unmodified-Since")) and modified > date:
        raise PreconditionFailed()
    if "If-None-Match" in sent:
        client_has = parse_etags(sent["If-None-Match"]).contains_weak(content.etag)
    else:
        date = _date("If-Modified-Since")
        client_has = date is not None and modified <= date
    if client_has:
        return HTTPStatus.NOT_MODIFIED, range(0)
    part = None
    # An If-Range that is a weak tag, or another date, is of other bytes (RFC 9110 §13.1.5).
    if request.method == "GET" and sent.get("If-Range", _etag(content)) in {_etag(content), http_date(modified)}:
        part = requested_range(sent.get("Range", ""), content.size)
    if part is None:
        return HTTPStatus.OK, range(content.size)
    return HTTPStatus.PARTIAL_CONTENT, part


def _date(name: str) -> datetime | None:
    """Return the date of a header; what is no date is as good as no header (RFC 9110 §13.1.3)."""
    try:
        return parse_date(request.headers.get(name))
    except OverflowError:  # numbers that no date has
        return None


def _headers(content: Content, status: HTTPStatus, part: range) -> dict[str, str]:
    headers = {
        "ETag": _etag(content),
        "Cache-Control": content.cache_control,
        "Content-Security-Policy": SANDBOX,
        "Cross-Origin-Resource-Policy": content.resource_policy,
    }
    if status == HTTPStatus.NOT_MODIFIED:
        return headers
    headers |= {
        "Content-Type": media_types.served_type(content.content_type),
        "Content-Length": str(len(part)),
        "Content-Disposition": _disposition(content),
        "Last-Modified": http_date(content.modified),
        "Accept-Ranges": "bytes",
    }
    if status == HTTPStatus.PARTIAL_CONTENT:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{content.size}"
    if content.sha256 is not None:
        # RFC 9530 §3: of the whole content, also where a part is sent.
        digest = base64.b64encode(bytes.fromhex(content.sha256)).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    return headers


def _etag(content: Content) -> str:
    return f'"{content.etag}"'


def _disposition(content: Content) -> str:
    harmless = media_types.may_inline(content.content_type)
    return names.content_disposition(content.disposition if harmless else "attachment", content.filename)


def _nginx_sends() -> bool:
    # nginx would check these two once more, against an ETag that it does not know.
    checked_again = any(name in request.headers for name in ("If-Match", "If-Unmodified-Since"))
    return settings.files.delivery is Delivery.X_ACCEL and not checked_again


def _redirect(content: Content, store: DirectStorage) -> Response:
    """Send the client to storage, which knows ranges itself."""
    url = store.download_url(
        content.key,
        content_type=media_types.served_type(content.content_type),
        disposition=_disposition(content),
        seconds=REDIRECT_SECONDS,
    )
    # Browsers ask for the policy of every answer on the way.
    headers = {"Location": url, "Cross-Origin-Resource-Policy": content.resource_policy}
    return Response(status=HTTPStatus.FOUND, headers=headers)


class _Part:
    """The next bytes of an open file, as a file for `wsgi.file_wrapper` (PEP 3333).

    gunicorn sends from the descriptor, as many bytes as Content-Length says; other servers read.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self.fileno = file.fileno
        self.seek = file.seek
        self.close = file.close

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _body(file: BinaryIO, part: range) -> Iterable[bytes]:
    file.seek(part.start)
    return wrap_file(request.environ, cast(IO[bytes], _Part(file, len(part))), BLOCK)
