"""What the tests of uploads share: files that come through the services, and books that have to balance."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar
from uuid import UUID, uuid4

from flask import Flask
from sqlalchemy import Connection, Engine, event, func, select, update
from sqlalchemy.exc import OperationalError

from project.database import db, transaction
from project.files import uploads
from project.files.models import File, FileStatus, FileVariant, StorageUsage, UploadMethod
from project.files.storage import storage
from project.files.uploads import Description
from project.security import Principal
from project.users.models import User

CONTENT = b"some text that is stored"
T = TypeVar("T")


class Killed(BaseException):
    """Stands for kill -9: nothing of ours should run after it."""


def describe(**told: Any) -> Description:
    """Say something boring about a file."""
    return Description(
        **{"method": UploadMethod.RAW, "filename": "a.txt", "declared_type": "text/plain", **told},
    )


def in_blocks(content: bytes, size: int = 1000) -> Iterator[bytes]:
    """Give bytes as they come from a client."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


def upload(owner: User | UUID, content: bytes = CONTENT, *, blocks: Iterable[bytes] | None = None, **told: Any) -> File:
    """Upload a raw body with a Content-Length; `blocks` is what really comes."""
    came = in_blocks(content) if blocks is None else blocks
    return uploads.upload_raw(describe(**told), came, owner_id=id_of(owner), length=len(content))


def upload_chunked(
    owner: User | UUID, content: bytes = CONTENT, *, blocks: Iterable[bytes] | None = None, **told: Any
) -> File:
    """Upload a raw body that says its length only at its end."""
    came = in_blocks(content) if blocks is None else blocks
    return uploads.upload_raw(describe(**told), came, owner_id=id_of(owner), length=None)


def upload_form(
    owner: User | UUID, content: bytes = CONTENT, *, blocks: Iterable[bytes] | None = None, **told: Any
) -> File:
    """Upload a file that was in a form, as the parser of forms and the end of the request do."""
    part = uploads.new_part()
    try:
        for block in in_blocks(content) if blocks is None else blocks:
            part.write(block)
        part.close()
        return uploads.upload_part(describe(method=UploadMethod.MULTIPART, **told), part, owner_id=id_of(owner))
    finally:
        part.discard()


WAYS: dict[str, Callable[..., File]] = {"raw": upload, "chunked": upload_chunked, "form": upload_form}


def id_of(owner: User | UUID) -> UUID:
    """The id of an account."""
    return owner if isinstance(owner, UUID) else owner.id


def principal_of(user: User) -> Principal:
    """The caller that services are told of."""
    return Principal(account=user, session_id=uuid4())


def content_of(file: File) -> bytes:
    """What storage has of a file."""
    with storage().open(file.storage_key) as stored:
        return stored.read()


def status_of(file_id: UUID) -> FileStatus | None:
    """The status that the database has, None when the row is gone."""
    return db.session.scalar(select(File.status).where(File.id == file_id))


def set_row(file: File, **values: Any) -> None:
    """Write into the row of a file behind everybody's back."""
    with transaction():
        db.session.execute(update(File).where(File.id == file.id).values(**values))


def on_disk(root: Path) -> dict[str, int]:
    """Every file below the folder with its size: objects by key, and parts."""
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def check_books(root: Path) -> None:
    """Check that nothing is under way, that counters are the sums of rows, and that the disk has their bytes alone."""
    columns = (File.owner_id, File.status, File.size, File.reserved, File.storage_key)
    rows = db.session.execute(select(*columns)).all()
    assert FileStatus.PENDING not in {row.status for row in rows}
    objects = {row.storage_key: row.size for row in rows if row.status is not FileStatus.MISSING}
    variants = db.session.execute(select(FileVariant.storage_key, FileVariant.size)).all()
    assert on_disk(root) == objects | {row.storage_key: row.size for row in variants}
    check_counters()


def check_counters() -> None:
    """Check that the counters are the sums of the rows, whatever is under way."""
    columns = (File.owner_id, File.status, File.size, File.reserved)
    rows = db.session.execute(select(*columns)).all()
    counters = db.session.execute(select(*StorageUsage.__table__.columns)).all()
    assert {row.owner_id for row in rows} - {None} <= {row.user_id for row in counters}
    for counted in counters:
        own = [row for row in rows if row.owner_id == counted.user_id]
        stored = [row.size for row in own if row.status is not FileStatus.PENDING]
        expected = (sum(stored), sum(row.reserved for row in own), len(stored))
        assert (counted.used, counted.reserved, counted.file_count) == expected


def check_nothing_stored(root: Path) -> None:
    """Check that no row, no part, no object and no reservation is left."""
    assert db.session.scalar(select(func.count()).select_from(File)) == 0
    check_books(root)


def holds_no_connection() -> bool:
    """Tell whether every connection is in the pool."""
    return db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@contextmanager
def broken(beginning: str, error: BaseException | None = None, *, engine: Engine | None = None) -> Iterator[None]:
    """Let the database fail whenever a statement begins like this; outside of an application it needs the engine."""
    engine = engine or db.engine

    def refuse(_connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(beginning):
            raise error or OperationalError(statement, parameters, Exception("the connection broke"))

    event.listen(engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", refuse)


@contextmanager
def broken_commit(number: int, *, is_done: bool) -> Iterator[None]:
    """Let the connection break at a transaction's commit: before it, or before the database could confirm it."""
    transactions = count(1)

    def fail(connection: Connection) -> None:
        # The others only end a phase of reading.
        if db.session().info.get("transaction") and next(transactions) == number:
            if is_done:
                connection.connection.commit()
            raise OperationalError("COMMIT", {}, Exception("the connection broke"))

    event.listen(db.engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(db.engine, "commit", fail)


def at_once(app: Flask, calls: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Make all calls at the same moment, each in a thread and an application context, and return how they ended."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | Exception:
        with app.app_context():
            barrier.wait(30)
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - how a call ended is what the test is about
                return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))
