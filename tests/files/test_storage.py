"""What both storages do alike, and which of them is used."""

import hashlib
import logging
import os
import stat
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from threading import Barrier

import pytest

from project import create_app
from project.errors import Unavailable
from project.files import s3
from project.files.storage import LocalStorage, ObjectMissing, Stored, new_incoming_key, new_key, storage
from tests.conftest import ENV
from tests.files.storages import FOREIGN_KEYS, KEY, NEIGHBOUR, NOON, make_part, put, read, run_child
from tests.servers.process import free_port


@pytest.fixture
def local(tmp_path) -> LocalStorage:
    (tmp_path / "files").mkdir()
    return LocalStorage(tmp_path / "files")


@pytest.fixture
def bucket(tmp_path, bucket_url) -> s3.S3Storage:
    return s3.from_url(bucket_url, parts=tmp_path / "files" / "tmp")


@pytest.fixture(params=["local", "bucket"])
def store(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("content", [b"content", b"", bytes(range(256)) * 20_000], ids=["short", "empty", "long"])
def test_what_was_put_can_be_read(store, content):
    assert read(store, put(store, content)) == content


def test_an_open_object_can_be_read_from_any_place(store):
    with store.open(put(store, b"0123456789")) as file:
        file.seek(7)
        assert file.read(2) == b"78"
        file.seek(-1, os.SEEK_END)
        assert file.read() == b"9"


def test_an_open_object_can_be_read_to_the_end_after_it_was_deleted(store):
    key = put(store, b"content")

    with store.open(key) as file:
        store.delete(key)
        assert file.read() == b"content"


def test_a_missing_object_is_missing(store):
    put(store)

    assert store.find(KEY) is None
    with pytest.raises(ObjectMissing):
        store.open(KEY)


def test_an_object_of_the_same_folder_is_another_one(store):
    put(store, key=KEY)
    other = NEIGHBOUR

    assert store.find(other) is None
    with pytest.raises(ObjectMissing):
        store.open(other)


def test_a_deleted_object_is_gone_and_the_others_stay(store):
    gone, kept = put(store), put(store)

    store.delete(gone)

    assert store.find(gone) is None
    assert read(store, kept) == b"content"


def test_deleting_what_is_missing_is_no_error(store):
    key = put(store)

    store.delete(key)
    store.delete(key)
    store.delete(new_key())


def test_an_object_is_found_with_its_size_and_a_time_in_utc(store):
    key = put(store, b"12345")

    found = store.find(key)

    assert (found.key, found.size) == (key, 5)
    assert found.modified.tzinfo is UTC


def test_all_objects_are_listed_also_what_clients_put_but_no_parts(store):
    keys = {put(store), put(store), put(store, key=new_incoming_key())}
    (store.incoming_parts / "some.part").write_bytes(b"not yet")

    objects = list(store.objects())

    assert all(isinstance(found, Stored) and found.size == 7 for found in objects)
    assert sorted(found.key for found in objects) == sorted(keys)


def test_an_empty_storage_lists_nothing(store):
    assert list(store.objects()) == []


def test_keys_are_random_and_spread_over_folders():
    keys = {new_key() for _ in range(100)}

    assert len(keys) == 100
    for key in keys:
        first, second, name = key.split("/")
        assert len(name) == 32
        assert set(name) <= set("0123456789abcdef")
        assert name.startswith(first + second)


def test_a_key_that_we_did_not_make_reaches_no_path_and_no_bucket(store):
    part = make_part(store)
    checked = {"content_type": "text/plain", "sha256": "00" * 32, "modified": NOON}

    for key in FOREIGN_KEYS:
        for verb in (store.open, store.find, store.delete, lambda key: store.put(key, part, **checked)):
            with pytest.raises(ValueError, match="not a key"):
                verb(key)
    assert part.exists()


def test_many_puts_into_one_new_folder_at_once_all_succeed(store):
    keys = [f"ab/cd/abcd{number:028x}" for number in range(8)]
    together = Barrier(len(keys))

    def put_with_others(key: str) -> None:
        together.wait()
        put(store, key.encode(), key)

    with ThreadPoolExecutor(len(keys)) as threads:
        list(threads.map(put_with_others, keys))

    assert [read(store, key) for key in keys] == [key.encode() for key in keys]


def test_parts_are_in_a_folder_for_our_eyes_only(store):
    assert stat.S_IMODE(store.incoming_parts.stat().st_mode) == 0o700


def test_large_objects_do_not_pass_through_memory_as_a_whole(store):
    size = 32 << 20
    key = new_key()
    part = store.incoming_parts / "large.part"
    with part.open("wb") as file:
        file.truncate(size)
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # The first use loads what stays in memory.
    put(store)

    tracemalloc.start()
    try:
        store.put(key, part, content_type="text/plain", sha256=sha256, modified=NOON)
        with store.open(key) as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


def folder_is_gone(request) -> LocalStorage:
    return LocalStorage(request.getfixturevalue("tmp_path") / "not-mounted")


def folder_is_a_file(request) -> LocalStorage:
    path = request.getfixturevalue("tmp_path") / "file"
    path.touch()
    return LocalStorage(path)


def nobody_answers(request) -> s3.S3Storage:
    request.getfixturevalue("s3_credentials")
    parts = request.getfixturevalue("tmp_path") / "tmp"
    return s3.from_url(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=us-east-1", parts=parts)


def no_such_bucket(request) -> s3.S3Storage:
    request.getfixturevalue("s3_credentials")
    endpoint = request.getfixturevalue("s3_url")
    return s3.from_url(
        f"s3://no-such-bucket?endpoint={endpoint}&region=us-east-1", parts=request.getfixturevalue("tmp_path") / "tmp"
    )


@pytest.mark.parametrize("broken", [folder_is_gone, folder_is_a_file, nobody_answers, no_such_bucket])
def test_a_storage_that_is_away_is_unavailable_and_nothing_counts_as_missing(request, broken, tmp_path, caplog):
    away = broken(request)
    part = tmp_path / "some.part"
    part.write_bytes(b"content")
    checked = {"content_type": "text/plain", "sha256": hashlib.sha256(b"content").hexdigest(), "modified": NOON}

    uses = [
        lambda: away.open(KEY),
        lambda: away.find(KEY),
        lambda: away.delete(KEY),
        lambda: list(away.objects()),
        lambda: away.put(KEY, part, **checked),
    ]
    for use in uses:
        with pytest.raises(Unavailable, match="file storage cannot be used"):
            use()

    assert part.exists()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("project")] == [
        "storage_unavailable"
    ] * len(uses)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def storage_of(tmp_path, **settings: str):
    app = create_app({**ENV, "DATA_DIR": str(tmp_path / "data"), **settings})
    with app.app_context():
        assert storage() is storage()
        return storage()


def test_files_are_in_the_data_directory_unless_told_otherwise(tmp_path):
    store = storage_of(tmp_path)

    assert not store.direct
    assert store.incoming_parts == tmp_path / "data" / "files" / "tmp"


def test_the_folder_of_the_storage_may_have_any_name(tmp_path):
    folder = tmp_path / "with blank, ü and 100%"

    store = storage_of(tmp_path, STORAGE_URL=folder.as_uri())

    assert read(store, put(store)) == b"content"
    assert store.incoming_parts == folder / "tmp"


def test_a_bucket_is_used_when_the_settings_name_one(tmp_path, bucket_url):
    store = storage_of(tmp_path, STORAGE_URL=bucket_url)

    assert store.direct
    assert read(store, put(store)) == b"content"
    assert store.incoming_parts == tmp_path / "data" / "files" / "tmp"


def test_applications_with_other_settings_have_other_storages(tmp_path):
    assert storage_of(tmp_path / "a") is not storage_of(tmp_path / "b")


def test_storing_on_disk_needs_no_boto3():
    script = """
        import sys
        sys.modules["boto3"] = None
        from pathlib import Path
        from project.files import storage
        assert not storage._storage("file:///nowhere", Path("/nowhere")).direct
    """
    run_child(script)
