"""Processes of their own that upload, delete or sweep, and are killed at a certain point as by kill -9."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, event, select

from project import create_app
from project.config import settings
from project.database import db
from project.errors import Unavailable
from project.files import service, storage
from project.files.models import File
from project.files.storage import LocalStorage
from project.files.sweep import sweep
from project.users import service as users
from tests.files.uploading import CONTENT, principal_of, upload, upload_form

# Its children start at once, and share no connections and locks with this process.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def crash(env: Mapping[str, str], action: str, point: str, owner_id: UUID) -> int:
    """Let a process do something until it is killed, and return how it ended, as Popen.returncode says it."""
    process = PROCESSES.Process(target=_run, args=(dict(env), action, point, owner_id))
    process.start()
    process.join(60)
    ended = process.exitcode
    process.close()
    assert ended is not None
    return ended


def _run(env: dict[str, str], action: str, point: str, owner_id: UUID) -> None:
    app = create_app(env)
    with app.app_context():
        when, what = point.split(" ", 1)
        if what.startswith("commit"):
            _die_at_commit(when, int(what.split()[1]))
        else:
            store = Deadly(Path(settings.data_dir / "files"), point, fails=action == "fail to upload")
            storage._storage = lambda _url, _data_dir: store  # type: ignore[assignment]
        ACTIONS[action](owner_id)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_commit(when: str, number: int) -> None:
    transactions = count(1)

    def die(connection: Connection) -> None:
        # The others only end a phase of reading.
        if db.session().info.get("transaction") and next(transactions) == number:
            if when == "after":
                connection.connection.commit()
            _die()

    event.listen(db.engine, "commit", die)


class Deadly(LocalStorage):
    """A storage in which the process dies before or after a method; `put` can fail when it has stored."""

    def __init__(self, root: Path, point: str, *, fails: bool) -> None:
        super().__init__(root)
        self._point = point
        self._fails = fails

    @property
    def incoming_parts(self) -> Path:
        """The folder for parts."""
        self._pass("before parts")
        return super().incoming_parts

    def put(self, *args: Any, **kwargs: Any) -> None:
        """Store."""
        self._pass("before put")
        super().put(*args, **kwargs)
        self._pass("after put")
        if self._fails:
            raise Unavailable

    def delete(self, key: str) -> None:
        """Delete."""
        self._pass("before delete")
        super().delete(key)
        self._pass("after delete")

    def _pass(self, point: str) -> None:
        if point == self._point:
            _die()


def _blocks() -> Iterator[bytes]:
    yield CONTENT
    _die()


def _delete(owner_id: UUID) -> None:
    file = db.session.scalars(select(File)).one()
    service.delete_file(file.id, caller=principal_of(users.get_user(owner_id)))


def _purge(_owner_id: UUID) -> None:
    service.purge(file_id=str(db.session.scalars(select(File.id)).one()))


ACTIONS: dict[str, Callable[[UUID], object]] = {
    "upload": upload,
    "upload a part": lambda owner_id: upload(owner_id, 2 * CONTENT, blocks=_blocks()),
    "upload a form": upload_form,
    "fail to upload": upload,
    "delete": _delete,
    "purge": _purge,
    "erase": lambda owner_id: users.erase_user(owner_id, actor_id=None),
    "sweep": lambda _owner_id: sweep(older_than=0),
}
