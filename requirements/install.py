"""Make .venv hold what a lock file says: `python requirements/install.py main|dev`.

Runs under whatever interpreter the machine calls python3, perhaps a very old one, so the syntax is
plain and nothing but the standard library is imported. Several `make run` at once are normal (two
servers on two ports); the lock lets one of them install while the others wait and find it done.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PIP = [str(VENV / "bin" / "python"), "-m", "pip"]
# Twice quiet: errors still show, and each mirror that a machine has configured does not warn per package.
QUIET = ["-qq", "--disable-pip-version-check", "--no-input"]
# The development lock holds everything that the main one does, in the same versions.
ALSO_DONE_BY = {"main": ["main"], "dev": ["main", "dev"]}


def main(kind: str) -> None:
    """Install the lock called kind, unless that is done already."""
    refuse_unsuitable_python()
    with one_at_a_time():
        wanted = {name: digest(name) for name in ALSO_DONE_BY[kind]}
        if stamp(kind).is_file() and stamp(kind).read_text() == wanted[kind]:
            stamp(kind).touch()  # an input is newer but says the same
            return
        print("Installing requirements/%s.txt into .venv (only when it changed) …" % kind, flush=True)
        ensure_venv()
        run(*PIP, "install", *QUIET, "--no-deps", "--require-hashes", "-r", "requirements/%s.txt" % kind)
        # setuptools comes from the lock, so the build needs no isolated environment and no download.
        run(*PIP, "install", *QUIET, "--no-deps", "--no-build-isolation", "--editable", ".")
        for name, value in wanted.items():
            stamp(name).write_text(value)


def refuse_unsuitable_python() -> None:
    """Stop with one clear line where the later failure would be a riddle."""
    if sys.version_info < OLDEST:
        found = "%d.%d" % sys.version_info[:2]
        sys.exit(
            "Python %d.%d or newer is needed, %s is %s. Try `make PYTHON=python3.13 …`."
            % (*OLDEST, sys.executable, found)
        )
    try:
        import ensurepip  # noqa: F401, PLC0415 - Debian splits it off, and only trying tells
        import venv  # noqa: F401, PLC0415
    except ImportError:
        package = "python%d.%d-venv" % sys.version_info[:2]
        sys.exit(
            "This Python cannot make virtual environments. On Debian and Ubuntu: apt install %s" % package
        )


@contextlib.contextmanager
def one_at_a_time():  # type: ignore[no-untyped-def]  # noqa: ANN201 - Iterator[None] needs an import per version
    """Hold the lock on .venv; the kernel drops it even if we are killed."""
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(kind: str) -> str:
    """Digest of all that an installation of this kind depends on."""
    names = ["requirements/%s.txt" % kind, "setup.cfg", "pyproject.toml"]
    content = b"\0".join((ROOT / name).read_bytes() for name in names)
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def stamp(kind: str) -> Path:
    """The file that `make` compares; its content is the digest of what is installed."""
    return VENV / (kind + ".stamp")


def ensure_venv() -> None:
    """Make the environment, also where an earlier attempt or another Python left a broken one."""
    try:
        subprocess.run([*PIP, "--version"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        run(sys.executable, "-m", "venv", "--clear", str(VENV))


def run(*command: str) -> None:
    """Run a command in the project's root; its failure is ours, without a traceback."""
    result = subprocess.run(command, cwd=str(ROOT), env=clean_environment(), check=False)
    if result.returncode:
        sys.exit("failed: " + " ".join(command))


def clean_environment() -> "dict[str, str]":
    """The environment without what would send pip's work outside .venv."""
    unwanted = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ALSO_DONE_BY:
        sys.exit("usage: install.py main|dev")
    main(sys.argv[1])
