"""Thumbnails as files ask for them: how many may be in the making at once."""

from threading import Barrier, Event, Thread
from typing import BinaryIO

import pytest

from project.errors import Unavailable
from project.files import variants
from project.files.storage import LocalStorage
from tests.factories import make_user
from tests.files.samples import picture
from tests.files.uploading import holds_no_connection, upload


def test_those_who_would_take_the_servers_last_threads_are_refused(app, session, files_root, replace_storage):
    all_waiting, go_on = Barrier(variants.MAX_WAITING + 1), Event()

    class Slow(LocalStorage):
        def open(self, key: str) -> BinaryIO:
            if not go_on.is_set():
                all_waiting.wait(30)
                assert go_on.wait(30)
            return super().open(key)

    file = upload(make_user(), picture("PNG"))
    replace_storage(Slow)

    def ask() -> None:
        with app.app_context():
            variants.get_thumbnail(file, size=64, kind="webp")

    threads = [Thread(target=ask) for _ in range(variants.MAX_WAITING)]
    for thread in threads:
        thread.start()
    all_waiting.wait(30)
    with pytest.raises(Unavailable, match="Too many thumbnails"):
        variants.get_thumbnail(file, size=64, kind="webp")
    assert holds_no_connection()

    go_on.set()
    for thread in threads:
        thread.join()
    assert variants.get_thumbnail(file, size=128, kind="webp").spec == "128-webp"
