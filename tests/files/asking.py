"""Requests that the tests of file routes make again and again, and what they look at in the answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from project.database import db, transaction
from project.files import uploads
from project.files.models import File, FileStatus, UploadMethod
from project.files.storage import storage

FILES = "/v1/files"
BOUNDARY = "a-boundary-of-the-tests"
TEXT = b"hello, world\n"


@dataclass(frozen=True)
class Part:
    """A part of a form as it is sent; with a file name, even an empty one, it is a file."""

    name: str
    content: bytes | str
    filename: str | None = None
    content_type: str | None = None

    def __bytes__(self) -> bytes:
        filename = "" if self.filename is None else f'; filename="{self.filename}"'
        head = f'Content-Disposition: form-data; name="{self.name}"{filename}\r\n'
        head += "" if self.content_type is None else f"Content-Type: {self.content_type}\r\n"
        content = self.content.encode() if isinstance(self.content, str) else self.content
        return head.encode() + b"\r\n" + content


def a_file(content: bytes = TEXT, filename: str = "hello.txt", content_type: str | None = "text/plain") -> Part:
    """The part that a form has to have."""
    return Part("file", content, filename, content_type)


def form(*parts: Part) -> dict[str, Any]:
    """The arguments of a request that sends these parts, byte for byte."""
    delimiter = f"--{BOUNDARY}".encode()
    body = b"".join(delimiter + b"\r\n" + bytes(part) + b"\r\n" for part in parts) + delimiter + b"--\r\n"
    return {"data": body, "content_type": f"multipart/form-data; boundary={BOUNDARY}"}


def upload(client: FlaskClient, caller: Mapping[str, str], content: bytes = TEXT, **told: str) -> dict[str, Any]:
    """Upload a file, named and declared as a text unless told otherwise, and return it as it was answered."""
    name, declared = told.pop("filename", "hello.txt"), told.pop("content_type", "text/plain")
    fields = [Part(field, text) for field, text in told.items()]
    response = client.post(FILES, headers=caller, **form(a_file(content, name, declared), *fields))
    assert response.status_code == 201, response.json
    return dict(_body(response)["data"])


def code(response: TestResponse) -> tuple[int, str]:
    """The status of a problem, and its code."""
    assert response.content_type == "application/problem+json", response.content_type
    return response.status_code, _body(response)["code"]


def errors(response: TestResponse) -> dict[str, str]:
    """The codes of a 422, by pointer."""
    assert code(response) == (422, "validation_error")
    return {error["pointer"]: error["code"] for error in _body(response)["errors"]}


def without_request(response: TestResponse) -> tuple[dict[str, Any], dict[str, str]]:
    """What an answer would tell somebody who compares: all but what belongs to the one request."""
    body = {name: value for name, value in _body(response).items() if name not in {"request_id", "instance"}}
    headers = {name: value for name, value in response.headers.items() if name not in {"X-Request-ID", "RateLimit"}}
    return body, headers


def _body(response: TestResponse) -> dict[str, Any]:
    return dict(json.loads(response.data))


def relative(url: str) -> str:
    """The path and query of a URL of ours."""
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}" == "http://localhost"
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def begin_upload(owner_id: UUID, **told: Any) -> UUID:
    """Make the row of an upload whose bytes are still to come, in an application context."""
    told = {"method": UploadMethod.RAW, "filename": "coming.bin", "declared_type": "image/png", **told}
    return uploads.begin(uploads.Description(**told), owner_id=owner_id, size=10).id


def stored_file(file_id: str) -> File:
    """The row of a file, in an application context."""
    found = db.session.get(File, UUID(file_id))
    assert found is not None
    return found


def set_status(file_id: str, status: FileStatus) -> None:
    """Move a file on as a sweep or a deletion would, in an application context."""
    with transaction():
        stored_file(file_id).status = status


def on_disk() -> set[str]:
    """All objects and parts in the storage, in an application context."""
    found = {stored.key for stored in storage().objects()}
    return found | {path.name for path in storage().incoming_parts.iterdir()}
