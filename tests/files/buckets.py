"""What the tests of files in a bucket share: the bucket seen from outside, its clients, and what happens meanwhile."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import requests
from boto3.session import Session
from sqlalchemy import select

from project.config import settings
from project.database import db
from project.files import direct
from project.files.direct import DirectFile
from project.files.models import DirectUpload, File, FileStatus, FileVariant, UploadMethod
from project.files.storage import PARTS, storage
from project.users.models import User
from tests.files.uploading import CONTENT, check_counters, describe
from tests.servers import make_bucket

SECONDS = 10


@dataclass(frozen=True)
class Bucket:
    """A bucket as those see it who have its credentials and know nothing of the application."""

    url: str  # the STORAGE_URL
    client: Any

    @property
    def name(self) -> str:
        """What the bucket is called."""
        return urlsplit(self.url).netloc

    def name_of(self, key: str) -> str:
        """What the object with a key of ours is called in the bucket."""
        return f"{urlsplit(self.url).path.strip('/')}/{key}"

    def objects(self) -> dict[str, int]:
        """The size of every object below the prefix, by its key."""
        prefix = self.name_of("")
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        return {entry["Key"].removeprefix(prefix): entry["Size"] for entry in found}

    def put(self, key: str, content: bytes = CONTENT) -> None:
        """Put an object, over what may be there."""
        self.client.put_object(Bucket=self.name, Key=self.name_of(key), Body=content)

    def copy(self, source: str, target: str) -> None:
        """Copy an object."""
        origin = {"Bucket": self.name, "Key": self.name_of(source)}
        self.client.copy_object(Bucket=self.name, Key=self.name_of(target), CopySource=origin)

    def read(self, key: str) -> bytes:
        """The bytes of an object."""
        return bytes(self.client.get_object(Bucket=self.name, Key=self.name_of(key))["Body"].read())

    def type_of(self, key: str) -> str:
        """The Content-Type that the bucket tells of an object by itself."""
        return str(self.client.head_object(Bucket=self.name, Key=self.name_of(key))["ContentType"])

    def delete(self, *keys: str) -> None:
        """Delete objects."""
        for key in keys:
            self.client.delete_object(Bucket=self.name, Key=self.name_of(key))


@cache
def _client(endpoint: str) -> Any:
    # Making one takes longer than most tests.
    key, secret = credentials().values()
    return Session(key, secret).client("s3", endpoint_url=endpoint, region_name="us-east-1")


def credentials() -> dict[str, str]:
    """The credentials of the S3, as a process finds them in its environment."""
    return {name: os.environ.get(name, "testing") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


def new_bucket(endpoint: str) -> Bucket:
    """Make a bucket."""
    return Bucket(make_bucket(endpoint, f"test-{uuid4()}"), _client(endpoint))


@cache
def the_bucket(endpoint: str) -> Bucket:
    """The bucket that the tests of this process share, because the application makes a client for each."""
    return new_bucket(endpoint)


class Watched:
    """The storage of the application, with something done before and after each of its verbs, as `after move`."""

    def __init__(self, act: Callable[[str], object]) -> None:
        self._store = storage()
        self._act = act

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def verb(*arguments: Any, **options: Any) -> Any:
            self._act(f"before {name}")
            with ExitStack() as undone:
                result = found(*arguments, **options)
                if name == "open":
                    undone.enter_context(result)
                self._act(f"after {name}")
                undone.pop_all()
            return result

        return verb


def at(moment: str, act: Callable[[], object] | BaseException) -> Callable[[str], None]:
    """Make what `Watched` does: this at its moment, once."""
    left = [moment]

    def run(now: str) -> None:
        if now not in left:
            return
        left.remove(now)
        if isinstance(act, BaseException):
            raise act
        act()

    return run


def start(owner: User, content: bytes = CONTENT, **told: Any) -> DirectFile:
    """Ask for the permission to put a file into the bucket."""
    described = describe(method=UploadMethod.DIRECT, sha256=hashlib.sha256(content).hexdigest(), **told)
    begun = direct.start(described, size=len(content), owner_id=owner.id)
    db.session.expunge_all()  # what comes later is another request, which finds what the database has
    return begun


def send(permission: direct.Permission, content: bytes = CONTENT) -> int:
    """Send the bytes as a client does, and return the status."""
    return request(permission.method, permission.url, headers=permission.headers, data=content).status_code


def request(method: str, url: str, **options: Any) -> requests.Response:
    """Ask the bucket, without anything of the developer's environment."""
    with requests.Session() as client:
        client.trust_env = False
        return client.request(method, url, timeout=SECONDS, **options)


def sent_up(owner: User, content: bytes = CONTENT, **told: Any) -> File:
    """Begin a direct upload and send its bytes."""
    begun = start(owner, content, **told)
    assert send(begun.upload, content) == requests.codes.ok
    return begun.file


def incoming(file: File) -> str | None:
    """Where the bytes of a direct upload are expected, None once it is over."""
    return db.session.scalar(select(DirectUpload.incoming_key).where(DirectUpload.file_id == file.id))


def parameters(url: str) -> Mapping[str, str]:
    """The parameters of a signed URL."""
    return {name: value for name, [value] in parse_qs(urlsplit(url).query, strict_parsing=True).items()}


def check_books(bucket: Bucket) -> None:
    """Check that nothing is under way, counters are the sums of rows, and the bucket has the bytes of rows alone."""
    rows = db.session.execute(select(File.status, File.size, File.storage_key)).all()
    assert {row.status for row in rows} <= {FileStatus.READY, FileStatus.DELETING}
    assert db.session.scalars(select(DirectUpload.file_id)).all() == []
    variants = db.session.execute(select(FileVariant.size, FileVariant.storage_key)).all()
    assert bucket.objects() == {row.storage_key: row.size for row in (*rows, *variants)}
    assert list((settings.data_dir / "files" / PARTS).glob("*")) == []
    check_counters()


def check_nothing_stored(bucket: Bucket) -> None:
    """Check that no row, no object and no reservation is left."""
    assert db.session.scalars(select(File.id)).all() == []
    check_books(bucket)
