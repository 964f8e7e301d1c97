"""Make .venv hold what a lock file says: `python requirements/install.py main|granian|dev`; `bench` is for .venv-bench.

Runs under whatever interpreter the machine calls python3, perhaps one too old for the project, so the
syntax is plain and nothing but the standard library is imported. Several `make run` at once are normal (two
servers on two ports); the lock lets one of them install while the others wait and find it done.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List  # noqa: UP035 - the modern names need a modern Python

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
# Twice quiet: errors still show, and each mirror that a machine has configured does not warn per package.
QUIET = ["-qq", "--disable-pip-version-check", "--no-input"]
# The other locks hold everything that the main one does, in the same versions, and that of development all of them.
ALSO_DONE_BY = {
    "main": ["main"],
    "granian": ["main", "granian"],
    "dev": ["main", "granian", "dev"],
    "bench": ["bench"],
}
# What the benchmarks compare the product with stays out of the environment that the product is developed in.
FOLDERS = {"main": ".venv", "granian": ".venv", "dev": ".venv", "bench": ".venv-bench"}


def main(kind: str) -> None:
    """Install the lock called kind, unless that is done already."""
    refuse_unsuitable_python()
    venv = ROOT / FOLDERS[kind]
    pip = [str(venv / "bin" / "python"), "-m", "pip"]
    with one_at_a_time(venv):
        wanted = {name: digest(name) for name in ALSO_DONE_BY[kind]}
        if stamp(kind).is_file() and stamp(kind).read_text() == wanted[kind]:
            stamp(kind).touch()  # an input is newer but says the same
            return
        print(f"Installing requirements/{kind}.txt into {venv.name} (only when it changed) …", flush=True)
        ensure_venv(venv, pip)
        run(*pip, "install", *QUIET, "--no-deps", "--require-hashes", "-r", f"requirements/{kind}.txt")
        # setuptools comes from the lock, so the build needs no isolated environment and no download.
        run(*pip, "install", *QUIET, "--no-deps", "--no-build-isolation", "--editable", ".")
        for name, value in wanted.items():
            stamp(name).write_text(value)


def refuse_unsuitable_python() -> None:
    """Stop with one clear line where the later failure would be a riddle."""
    major, minor = sys.version_info[:2]
    if (major, minor) < OLDEST:
        sys.exit(
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, {sys.executable} is {major}.{minor}."
            " Try `make PYTHON=python3.13 …`."
        )
    # Debian splits these off into a package of their own.
    if not (importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")):
        sys.exit(
            "This Python cannot make virtual environments."
            f" On Debian and Ubuntu: apt install python{major}.{minor}-venv"
        )


@contextlib.contextmanager
def one_at_a_time(venv: Path) -> Iterator[None]:
    """Hold the lock on the environment; the kernel drops it even if we are killed."""
    with venv.with_name(venv.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(kind: str) -> str:
    """Digest of all that an installation of this kind depends on."""
    names = [f"requirements/{kind}.txt", "setup.cfg", "pyproject.toml"]
    content = b"\0".join((ROOT / name).read_bytes() for name in names)
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def stamp(kind: str) -> Path:
    """The file that `make` compares; its content is the digest of what is installed."""
    return ROOT / FOLDERS[kind] / (kind + ".stamp")


def ensure_venv(venv: Path, pip: List[str]) -> None:
    """Make the environment, also where an earlier attempt or another Python left a broken one."""
    try:
        subprocess.run([*pip, "--version"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        run(sys.executable, "-m", "venv", "--clear", str(venv))


def run(*command: str) -> None:
    """Run a command in the project's root; its failure is ours, without a traceback."""
    result = subprocess.run(command, cwd=str(ROOT), env=clean_environment(), check=False)
    if result.returncode:
        sys.exit("failed: " + " ".join(command))


def clean_environment() -> Dict[str, str]:
    """The environment without what would send pip's work outside .venv."""
    unwanted = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ALSO_DONE_BY:
        sys.exit("usage: install.py main|granian|dev|bench")
    main(sys.argv[1])
