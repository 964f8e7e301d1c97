"""Objects in an S3-compatible bucket; needs the extra `s3`. Credentials are where AWS's libraries look for them."""

import os
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from project.files.storage import ObjectMissing, Stored, check_key, disk_errors, is_key, unavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

_BLOCK = 1 << 20  # bytes of an object that are in memory at once
_OPTIONS = Config(
    signature_version="s3v4",  # the older one signs no headers
    connect_timeout=2,
    read_timeout=10,
    retries={"mode": "standard", "total_max_attempts": 2},
    # As many as WEB_THREADS may be; beyond it botocore would warn with every request.
    max_pool_connections=256,
)


@contextmanager
def _failures() -> Iterator[None]:
    """Tell a missing object from a bucket that refuses or does not answer, and from a full disk of ours."""
    with disk_errors():
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchKey":
                raise ObjectMissing() from None
            raise unavailable(error, code) from error
        except BotoCoreError as error:
            raise unavailable(error, None) from error


class S3Storage:
    """Objects in a bucket, below a prefix. Clients put and get by themselves, with URLs signed for one purpose.

    The credentials need GetObject, PutObject and DeleteObject below the prefix, and ListBucket: without it S3 does not
    say that an object is missing. An object has at most 5 GiB, S3's limit for one PUT and for one copy.
    """

    direct: Literal[True] = True

    def __init__(self, bucket: str, *, prefix: str, endpoint: str | None, region: str | None, parts: Path) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._region = region
        self._parts = parts
        self._made: tuple[int, S3Client] | None = None

    @property
    def incoming_parts(self) -> Path:
        """The folder for parts, on this machine."""
        with disk_errors():
            self._parts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._parts.mkdir(mode=0o700, exist_ok=True)
        return self._parts

    @property
    def _client(self) -> "S3Client":
        """The client of this process, made by its first use: a child must not share its parent's connections."""
        if self._made is None or self._made[0] != os.getpid():
            # A bucket's name is a part of the host only where we know that its certificate covers that.
            style = Config(s3={"addressing_style": "path" if self._endpoint else "auto"})
            # A session of its own, since the default one is not safe to use in threads.
            client = Session().client(
                "s3", endpoint_url=self._endpoint, region_name=self._region, config=_OPTIONS.merge(style)
            )
            self._made = (os.getpid(), client)
        return self._made[1]

    def put(self, key: str, part: Path, *, content_type: str, sha256: str, modified: datetime) -> None:  # noqa: ARG002
        """Upload the file; the bucket refuses it when its bytes are not those of the checksum."""
        name = self._name(key)
        with _failures():
            with part.open("rb") as file:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=name,
                    Body=file,
                    ContentLength=os.fstat(file.fileno()).st_size,
                    ContentType=content_type,
                    ChecksumSHA256=_base64(sha256),
                )
            part.unlink()

    def open(self, key: str) -> BinaryIO:
        """Download the object into a file that has no name, so that nothing is left behind."""
        name = self._name(key)
        with _failures(), ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=self.incoming_parts))
            # At its end botocore compares the checksum that the object was put with.
            for block in self._client.get_object(Bucket=self._bucket, Key=name)["Body"].iter_chunks(_BLOCK):
                file.write(block)
            file.seek(0)
            stack.pop_all()
        return file

    def delete(self, key: str) -> None:
        """Delete the object; S3 does not say whether there was one."""
        name = self._name(key)
        with _failures():
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def find(self, key: str) -> Stored | None:
        """Say what the bucket knows of the object."""
        name = self._name(key)
        with _failures():
            # HEAD answers a missing bucket as it does a missing object, and nobody must take one for the other.
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=name, MaxKeys=1)
        return next((_stored(key, found) for found in answer.get("Contents", []) if found["Key"] == name), None)

    def objects(self) -> Iterator[Stored]:
        """Go through the bucket below the prefix, a thousand objects at a time."""
        with _failures():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for page in pages:
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(self._prefix)
                    if is_key(key):
                        yield _stored(key, found)

    def download_url(self, key: str, *, content_type: str, disposition: str, seconds: int) -> str:
        """Return a URL that gives the object with these headers, and tells caches to keep nothing."""
        return self._sign(
            "get_object",
            seconds,
            Key=self._name(key),
            ResponseContentType=content_type,
            ResponseContentDisposition=disposition,
            ResponseCacheControl="private, no-store",
        )

    def upload_target(
        self, key: str, *, size: int, content_type: str, sha256: str, seconds: int
    ) -> tuple[str, dict[str, str]]:
        """Return a URL to PUT with exactly these headers: all are signed, and so bind the size, type and bytes."""
        checksum = _base64(sha256)
        url = self._sign(
            "put_object",
            seconds,
            Key=self._name(key),
            ContentLength=size,
            ContentType=content_type,
            ChecksumSHA256=checksum,
            IfNoneMatch="*",
        )
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(size),
            "x-amz-checksum-sha256": checksum,
            "If-None-Match": "*",  # there is no second PUT while the first one's object is there
        }
        return url, headers

    def move(self, source: str, target: str) -> None:
        """Copy the object inside the bucket, then delete it where it was."""
        old, new = self._name(source), self._name(target)
        with _failures():
            self._client.copy_object(Bucket=self._bucket, Key=new, CopySource={"Bucket": self._bucket, "Key": old})
            self._client.delete_object(Bucket=self._bucket, Key=old)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _sign(self, method: Literal["get_object", "put_object"], seconds: int, **parameters: str | int) -> str:
        with _failures():
            return self._client.generate_presigned_url(
                method, Params={"Bucket": self._bucket, **parameters}, ExpiresIn=seconds
            )


def _stored(key: str, found: "ObjectTypeDef") -> Stored:
    return Stored(key, found["Size"], found["LastModified"].astimezone(UTC))


def _base64(sha256: str) -> str:
    return b64encode(bytes.fromhex(sha256)).decode()


def from_url(url: str, *, parts: Path) -> S3Storage:
    """Return the storage at `s3://bucket/prefix?endpoint=…&region=…`, which keeps its parts in this folder."""
    found = urlsplit(url)
    options = dict(parse_qsl(found.query))
    return S3Storage(
        found.netloc,
        prefix=unquote(found.path).strip("/"),
        endpoint=options.get("endpoint"),
        region=options.get("region"),
        parts=parts,
    )
