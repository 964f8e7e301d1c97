"""What the tests of the storages share: a key, and how an object is put and read."""

import hashlib
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from project.files.storage import Storage, new_key

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = "ab/cd/abcd0000000000000000000000000000"
NEIGHBOUR = "ab/cd/abcd0000000000000000000000000001"
# None of them is what we make.
FOREIGN_KEYS = [
    "",
    "../x",
    "/etc/passwd",
    "ab/cd/../../x",
    "tmp/x.part",
    "incoming/../ab",
    KEY + "\n",
    KEY.upper(),
    KEY.replace("ab/", "ab//"),
    "ab/ce/abcd0000000000000000000000000000",
    "ab/cd/abcd000000000000000000000000000",
    "ab/cd/abcd000000000000000000000000000\N{ARABIC-INDIC DIGIT ZERO}",
]


def put(store: Storage, content: bytes = b"content", key: str | None = None) -> str:
    """Put an object as an upload does, and return its key."""
    key = key or new_key()
    part = make_part(store, content, name=key.rpartition("/")[2])
    store.put(key, part, content_type="text/plain", sha256=hashlib.sha256(content).hexdigest(), modified=NOON)
    assert not part.exists()
    return key


def make_part(store: Storage, content: bytes = b"content", name: str = "some") -> Path:
    """Write a file that has been received."""
    part = store.incoming_parts / f"{name}.part"
    part.write_bytes(content)
    return part


def read(store: Storage, key: str) -> bytes:
    """Read an object."""
    with store.open(key) as file:
        return file.read()


@contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    """Let this process have less of something."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def run_child(script: str, *arguments: str | Path, under: tuple[str, ...] = ()) -> str:
    """Run a script in a Python of its own and return what it prints."""
    command = [*under, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
