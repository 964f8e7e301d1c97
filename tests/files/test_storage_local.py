"""Objects on local disk: crashes, symbolic links, modes."""

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from project.errors import Unavailable
from project.files.storage import LocalStorage, new_incoming_key, new_key
from tests.files.storages import KEY, NEIGHBOUR, NOON, limited, make_part, put, read, run_child


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def local(tmp_path) -> LocalStorage:
    (tmp_path / "files").mkdir()
    return LocalStorage(tmp_path / "files")


def test_an_object_has_the_time_that_it_was_put_with(local):
    assert local.find(put(local)).modified == NOON


def test_the_group_may_read_objects_and_others_may_not(local, tmp_path):
    key = put(local)

    modes = {
        path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("files/[!t]*/**/*")
    }

    assert modes == {Path(f"files/{key[:5]}"): 0o750, Path(f"files/{key}"): 0o640}
    assert stat.S_IMODE((tmp_path / "files" / key[:2]).stat().st_mode) == 0o750


def test_a_symbolic_link_in_the_place_of_an_object_is_not_followed(local, tmp_path):
    put(local, key=NEIGHBOUR)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "files" / KEY).symlink_to(tmp_path / "secret")

    for use in (local.open, local.find):
        with pytest.raises(Unavailable):
            use(KEY)
    assert [found.key for found in local.objects()] == [NEIGHBOUR]
    local.delete(KEY)
    assert (tmp_path / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("link", ["ab", "ab/cd"])
def test_a_symbolic_link_in_the_place_of_a_folder_is_not_followed(local, tmp_path, link):
    elsewhere = tmp_path / "elsewhere"
    secret = elsewhere / KEY.removeprefix(f"{link}/")
    secret.parent.mkdir(parents=True)
    secret.write_bytes(b"secret")
    path = tmp_path / "files" / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))

    for use in (local.open, local.find, local.delete, lambda key: put(local, key=key)):
        with pytest.raises(Unavailable):
            use(KEY)
    assert list(local.objects()) == []
    assert sorted(elsewhere.rglob("*")) == before
    assert secret.read_bytes() == b"secret"


def test_a_symbolic_link_in_the_place_of_a_part_is_not_taken_over(local, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    part = local.incoming_parts / "some.part"
    part.symlink_to(tmp_path / "secret")

    with pytest.raises(Unavailable):
        local.put(KEY, part, content_type="text/plain", sha256="00" * 32, modified=NOON)
    assert local.find(KEY) is None


def test_the_folder_of_the_storage_may_be_a_symbolic_link(local, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "files")
    linked = LocalStorage(tmp_path / "link")

    key = put(linked)

    assert read(linked, key) == read(local, key) == b"content"
    assert [found.key for found in linked.objects()] == [key]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_no_object(local, tmp_path, make):
    put(local, key=NEIGHBOUR)
    make(tmp_path / "files" / KEY)

    for use in (local.open, local.find):
        with pytest.raises(Unavailable):
            use(KEY)
    assert [found.key for found in local.objects()] == [NEIGHBOUR]


def test_files_of_others_beside_the_objects_are_not_listed(local, tmp_path):
    key = put(local)
    for name in ("lost+found/x", "README", f"{key[:5]}/.nfs0001", f"{key}.bak", "ab/x", f"zz/{KEY}"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")

    assert [found.key for found in local.objects()] == [key]


def test_a_process_without_file_descriptors_says_that_the_storage_is_unavailable(local, caplog):
    key = put(local)
    part = make_part(local)
    checked = {"content_type": "text/plain", "sha256": "00" * 32, "modified": NOON}

    with limited(resource.RLIMIT_NOFILE, 3):
        for use in (local.open, local.find, local.delete, lambda key: local.put(key, part, **checked)):
            with pytest.raises(Unavailable):
                use(key)

    assert {record.code for record in caplog.records} == {"EMFILE"}
    assert read(local, key) == b"content"


def test_a_listing_is_whole_or_fails(local):
    keys = sorted([put(local), put(local)])
    listings = []

    # With every number of descriptors from none to enough the failure is at another place.
    for descriptors in range(3, 100):
        with limited(resource.RLIMIT_NOFILE, descriptors), suppress(Unavailable):
            listings.append(sorted(found.key for found in local.objects()))

    assert 0 < len(listings) < 97
    assert all(listing == keys for listing in listings)


def test_a_listing_that_loses_a_folder_on_its_way_fails(local, tmp_path):
    put(local, key=KEY)
    put(local, key=new_incoming_key())

    listing = local.objects()
    first = next(listing).key.partition("/")[0]
    shutil.rmtree(tmp_path / "files" / ({"ab", "incoming"} - {first}).pop())

    with pytest.raises(Unavailable):
        next(listing)


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_nothing_is_left_open(local):
    key = put(local)
    before = open_files()

    put(local)
    local.find(key)
    local.open(key).close()
    list(local.objects())
    next(local.objects())
    local.delete(key)

    assert open_files() == before


OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
DISK_FULL = """
    import json, os, subprocess, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from project.errors import Unavailable
    from project.files.storage import LocalStorage, new_key

    root = Path(sys.argv[1])
    # Inodes for the root, the folder of parts, two parts, and one folder of the two that are needed.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=5", "none", root], check=True)
    store = LocalStorage(root)
    part, ballast = store.incoming_parts / "some.part", store.incoming_parts / "ballast.part"
    part.write_bytes(b"content")
    ballast.touch()
    kind = {"content_type": "text/plain", "sha256": "", "modified": datetime.now(UTC)}
    key = new_key()
    try:
        store.put(key, part, **kind)
        refused = False
    except Unavailable as error:
        refused = error.__cause__.strerror
    during = store.find(key)
    ballast.unlink()
    store.put(key, part, **kind)
    print(json.dumps([refused, during, store.open(key).read().decode()]))
"""


def test_a_put_on_a_full_disk_is_refused_and_succeeds_when_there_is_room(tmp_path):
    try:
        subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", tmp_path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing may be mounted here")

    done = run_child(DISK_FULL, tmp_path, under=OWN_MOUNTS)

    assert json.loads(done) == [os.strerror(errno.ENOSPC), None, "content"]


def test_bytes_are_on_the_disk_before_the_object_appears_and_its_folders_before_the_put_ends(
    local, tmp_path, monkeypatch
):
    steps: list[str] = []

    def where(target) -> str:
        path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else Path(target)
        return str(path.relative_to(tmp_path)) if path.is_absolute() else str(path)

    def watch(name: str) -> None:
        call = getattr(os, name)

        def watched(target, *arguments, **options):
            steps.append(f"{name} {where(target)}")
            return call(target, *arguments, **options)

        monkeypatch.setattr(os, name, watched)

    part = make_part(local)
    for name in ("mkdir", "fchmod", "utime", "fsync", "rename"):
        watch(name)

    local.put(KEY, part, content_type="text/plain", sha256="", modified=NOON)

    assert steps == [
        "mkdir ab",
        "mkdir cd",
        "fchmod files/tmp/some.part",
        "utime files/tmp/some.part",
        "fsync files/tmp/some.part",
        "rename files/tmp/some.part",
        "fsync files/ab/cd",
        "fsync files/ab",
        "fsync files",
    ]


# Ends itself after the n-th call to the system, for every n, and says what a process that comes later finds.
KILLED = """
    import json, os, signal, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from project.files.storage import LocalStorage, ObjectMissing, new_incoming_key, new_key

    CALLS = ("open", "mkdir", "fstat", "fchmod", "utime", "fsync", "rename", "close")
    KEY = sys.argv[2]
    KIND = {"content_type": "text/plain", "sha256": "", "modified": datetime.now(UTC)}

    def put(store, key):
        part = store.incoming_parts / "some.part"
        part.write_bytes(b"content")
        store.put(key, part, **KIND)

    def die_after(calls, report):
        def count(name):
            call = getattr(os, name)
            def counted(*arguments, **options):
                nonlocal calls
                result = call(*arguments, **options)
                calls -= 1
                if calls == 0:
                    os.write(report, name.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            setattr(os, name, counted)
        for name in CALLS:
            count(name)

    def found(store, key):
        try:
            return store.open(key).read().decode()
        except ObjectMissing:
            return None

    killed, calls = True, 0
    while killed:
        calls += 1
        root = Path(sys.argv[1], str(calls))
        root.mkdir()
        store = LocalStorage(root)
        store.incoming_parts
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            part = store.incoming_parts / "some.part"
            part.write_bytes(b"content")
            die_after(calls, writing)
            store.put(KEY, part, **KIND)
            os._exit(0)
        os.close(writing)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        after = os.read(reading, 100).decode() if killed else "end"
        os.close(reading)
        seen = found(store, KEY)
        listed = [item.key for item in store.objects()]
        assert listed == ([KEY] if seen else []), listed
        put(store, new_key())
        put(store, KEY[:-1] + "1")
        print(json.dumps([after, seen]))
"""


def test_a_put_that_is_killed_leaves_the_whole_object_or_none(tmp_path):
    lines = [json.loads(line) for line in run_child(KILLED, tmp_path, KEY).splitlines()]

    names = [name for name, _ in lines]
    assert {"open", "mkdir", "fchmod", "utime", "fsync", "rename", "close", "end"} == set(names) - {"fstat"}
    appears = names.index("rename")
    assert [seen for _, seen in lines] == [None] * appears + ["content"] * (len(lines) - appears)


WATCHING = """
    import sys
    from pathlib import Path
    from project.files.storage import LocalStorage, ObjectMissing

    store = LocalStorage(Path(sys.argv[1]))
    print("ready", flush=True)
    for key in sys.argv[2:]:
        while True:
            try:
                with store.open(key) as file:
                    print(len(file.read()), flush=True)
                break
            except ObjectMissing:
                pass
"""


def test_another_process_sees_an_object_only_when_it_is_whole(local, tmp_path):
    keys = [new_key() for _ in range(20)]
    content = bytes(4 << 20)
    command = [sys.executable, "-c", textwrap.dedent(WATCHING), tmp_path / "files", *keys]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout
        assert watcher.stdout.readline() == "ready\n"
        for key in keys:
            put(local, content, key)
        sizes = watcher.stdout.read().split()

    assert sizes == [str(len(content))] * len(keys)
