"""Fixtures of the tests of files: an empty storage, other settings, other adapters."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from flask import Flask

from project.files import storage
from project.files.storage import LocalStorage, Storage
from tests.files.buckets import Bucket, Watched, the_bucket


@pytest.fixture
def files_root(app: Flask) -> Path:
    """The folder of the local storage, emptied."""
    root = Path(unquote(urlsplit(app.extensions["settings"].files.storage_url).path))
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    return root


@pytest.fixture
def set_files(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give settings of files other values, such as `max_size=1000`."""

    def change(**values: Any) -> None:
        settings = app.extensions["settings"]
        monkeypatch.setitem(app.extensions, "settings", replace(settings, files=replace(settings.files, **values)))

    return change


@pytest.fixture
def replace_storage(files_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[LocalStorage]], Storage]:
    """Put another storage in the place of the local one, on the same folder."""

    def put_in_place(kind: type[LocalStorage]) -> Storage:
        store = kind(files_root)
        monkeypatch.setattr(storage, "_storage", lambda _url, _data_dir: store)
        return store

    return put_in_place


@pytest.fixture
def bucket(set_files, files_root, s3_url, s3_credentials) -> Bucket:
    """The bucket of the application, without an object."""
    found = the_bucket(s3_url)
    found.delete(*found.objects())
    set_files(storage_url=found.url)
    return found


@pytest.fixture
def watch(bucket, app, monkeypatch) -> Callable[..., None]:
    """Let something happen around the verbs of the storage."""

    def put_in_place(act: Callable[[str], object]) -> None:
        with app.app_context():
            store = Watched(act)
        monkeypatch.setattr(storage, "_storage", lambda _url, _data_dir: store)

    return put_in_place


@pytest.fixture
def later(time_machine) -> Callable[..., None]:
    """Let time go by."""
    time_machine.move_to(datetime.now(UTC))
    return lambda **passed: time_machine.shift(timedelta(**passed))
