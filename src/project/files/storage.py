"""Where the bytes of files are: a map from random keys to objects, on local disk here or in a bucket (s3.py)."""

import errno
import importlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, Protocol, cast
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from project.config import settings
from project.errors import AppError, Unavailable

logger = logging.getLogger(__name__)

INCOMING = "incoming"
PARTS = "tmp"

# Keys are ours, never a user's; anything else is a mistake that must not reach a path or a bucket.
_KEY = re.compile(rf"([0-9a-f]{{2}})/([0-9a-f]{{2}})/\1\2[0-9a-f]{{28}}|{INCOMING}/[0-9a-f]{{32}}")
_HOLDS_OBJECTS = re.compile(rf"[0-9a-f]{{2}}|{INCOMING}")

# A proxy's group may read what it is told to send.
_FOLDER_MODE = 0o750
_FILE_MODE = 0o640
# No step of the way may be a symbolic link, and what is no regular file must not block before it is seen.
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class ObjectMissing(AppError):
    """410, where nobody expects it: there is no object with this key, so the bytes of a file are lost."""

    status = HTTPStatus.GONE
    code = "file_lost"
    message = "The content of this file has been lost."
    cure = "Upload the file again; its metadata can still be read."


@dataclass(frozen=True)
class Stored:
    """What a storage knows of an object: its key, its size in bytes and when it was last written."""

    key: str
    size: int
    modified: datetime


class Storage(Protocol):
    """What both storages do.

    Every method raises ValueError for a key that neither `new_key` nor `new_incoming_key` made, and Unavailable
    when the disk or the bucket fails, which is logged.
    """

    @property
    def direct(self) -> bool:
        """True when clients can put and get by themselves (DirectStorage)."""

    @property
    def incoming_parts(self) -> Path:
        """The folder for files that are being received, named `<name>.part`; made when it is needed."""

    def put(self, key: str, part: Path, *, content_type: str, sha256: str, modified: datetime) -> None:
        """Take the file over as an object that survives a power cut once this returns.

        Args:
            key: the object's, which nothing was put under before.
            part: a file in `incoming_parts`; it is gone afterwards. When this raises it may still be there, and the
                object too.
            content_type: what a bucket tells whoever gets the object from it.
            sha256: of the content, in hexadecimal.
            modified: the object's time on a disk, which a proxy sends as Last-Modified.
        """

    def open(self, key: str) -> BinaryIO:
        """Open an object to read and seek in it.

        Raises:
            ObjectMissing: there is none.
        """

    def delete(self, key: str) -> None:
        """Delete an object; one that is missing counts as deleted."""

    def find(self, key: str) -> Stored | None:
        """Say what is known of an object, None when there is none."""

    def objects(self) -> Iterator[Stored]:
        """Go through all objects, those that clients put included; strangers' files beside them are left out."""


class DirectStorage(Storage, Protocol):
    """A storage that clients can put to and get from by themselves, with URLs that are signed for it."""

    @property
    def direct(self) -> Literal[True]:
        """True."""

    def download_url(self, key: str, *, content_type: str, disposition: str, seconds: int) -> str:
        """Return a URL that gives the object, with these headers, for so long."""

    def upload_target(
        self, key: str, *, size: int, content_type: str, sha256: str, seconds: int
    ) -> tuple[str, dict[str, str]]:
        """Return a URL to PUT an object to, once, and the headers that have to be sent with it as they are."""

    def move(self, source: str, target: str) -> None:
        """Give an object another key; died in between, both are there.

        Raises:
            ObjectMissing: there is none at `source`.
        """


def new_key() -> str:
    """Return a key for an object; its folders keep each of them small."""
    name = uuid4().hex
    return f"{name[:2]}/{name[2:4]}/{name}"


def new_incoming_key() -> str:
    """Return a key for an object that a client puts by itself."""
    return f"{INCOMING}/{uuid4().hex}"


def is_key(text: str) -> bool:
    """Tell whether this is a key as we make them."""
    return _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        ValueError: we do not make such keys.
    """
    if not is_key(key):
        raise ValueError("not a key of an object")
    return key


def unavailable(error: Exception, code: str | None) -> Unavailable:
    """Log why a storage failed, and return the refusal for clients."""
    logger.warning("storage_unavailable", extra={"error": type(error).__name__, "code": code})
    return Unavailable("The file storage cannot be used right now.")


@contextmanager
def disk_errors() -> Iterator[None]:
    """Make whatever the disk says a refusal: full, broken, not mounted, not ours to use."""
    try:
        yield
    except OSError as error:
        raise unavailable(error, errno.errorcode.get(error.errno or 0)) from error


class LocalStorage:
    """Objects in a folder of this machine.

    The folder itself may be reached by a symbolic link, nothing in it. Folders once made are never removed, so that
    a put never finds the folder gone that it has just seen.
    """

    direct: Literal[False] = False

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def incoming_parts(self) -> Path:
        """The folder for parts, on the same filesystem as the objects."""
        folder = self._root / PARTS
        with disk_errors():
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def put(self, key: str, part: Path, *, content_type: str, sha256: str, modified: datetime) -> None:  # noqa: ARG002
        """Take the file over; it appears whole, and only after its bytes are on the disk."""
        with disk_errors(), self._folders(key, make=True) as folders:
            _make_durable(part, modified)
            os.rename(part, _name(key), dst_dir_fd=folders[-1])
            # Also where nothing was made just now: another process may have made the folder and not come this far.
            for folder in reversed(folders):
                os.fsync(folder)

    def open(self, key: str) -> BinaryIO:
        """Open the object to read and seek in it."""
        with disk_errors():
            try:
                with self._folders(key) as folders:
                    descriptor = os.open(_name(key), _FILE, dir_fd=folders[-1])
            except FileNotFoundError:
                raise ObjectMissing() from None
            with ExitStack() as stack:
                file = stack.enter_context(os.fdopen(descriptor, "rb"))
                _check_regular(os.fstat(descriptor))
                stack.pop_all()
            return file

    def delete(self, key: str) -> None:
        """Delete the object. A power cut may bring it back, without a row: the sweep deletes it again."""
        with disk_errors(), suppress(FileNotFoundError), self._folders(key) as folders:
            os.unlink(_name(key), dir_fd=folders[-1])

    def find(self, key: str) -> Stored | None:
        """Say what the disk knows of the object."""
        with disk_errors(), suppress(FileNotFoundError), self._folders(key) as folders:
            found = os.stat(_name(key), dir_fd=folders[-1], follow_symlinks=False)
            _check_regular(found)
            return _stored(key, found)
        return None

    def objects(self) -> Iterator[Stored]:
        """Go through the folders, of which one at a time is in memory."""
        with disk_errors(), ExitStack() as stack:
            root = self._open_root(stack)
            for path, folders, files, descriptor in os.fwalk(".", onerror=_raise, dir_fd=root):
                folders[:] = [name for name in folders if _HOLDS_OBJECTS.fullmatch(name)]
                prefix = path.removeprefix(".").removeprefix("/")
                for key in filter(is_key, (f"{prefix}/{name}" for name in files)):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        found = os.stat(_name(key), dir_fd=descriptor, follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode):
                            yield _stored(key, found)

    @contextmanager
    def _folders(self, key: str, *, make: bool = False) -> Iterator[list[int]]:
        """Open the folders from the root to the object's, each in the one before, and close them at the end."""
        names = check_key(key).split("/")[:-1]
        with ExitStack() as stack:
            folders = [self._open_root(stack)]
            for name in names:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, _FOLDER_MODE, dir_fd=folders[-1])
                folders.append(_open(stack, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folders[-1])))
            yield folders

    def _open_root(self, stack: ExitStack) -> int:
        try:
            return _open(stack, os.open(self._root, _FOLDER))
        except FileNotFoundError as error:
            # No object is missing: a disk is not mounted. A sweep that took this for lost files would say so of all.
            raise NotADirectoryError(errno.ENOTDIR, "the folder of the storage is gone") from error


def _open(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _make_durable(part: Path, modified: datetime) -> None:
    """Give the file its mode and time, and wait until all of it is on the disk."""
    with ExitStack() as stack:
        descriptor = _open(stack, os.open(part, _FILE))
        _check_regular(os.fstat(descriptor))
        os.fchmod(descriptor, _FILE_MODE)
        os.utime(descriptor, (modified.timestamp(), modified.timestamp()))
        os.fsync(descriptor)


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _stored(key: str, found: os.stat_result) -> Stored:
    return Stored(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _raise(error: OSError) -> NoReturn:
    raise error


def storage() -> LocalStorage | DirectStorage:
    """Return the storage that the current settings name."""
    return _storage(settings.files.storage_url, settings.data_dir)


@cache
def _storage(url: str, data_dir: Path) -> LocalStorage | DirectStorage:
    if url.startswith("file:"):
        return LocalStorage(Path(unquote(urlsplit(url).path)))
    # boto3 is an extra: on a machine that stores on its disk the module could not be imported.
    s3: Any = importlib.import_module("project.files.s3")
    return cast(DirectStorage, s3.from_url(url, parts=data_dir / "files" / PARTS))
