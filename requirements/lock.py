"""Write the lock files from setup.cfg, or tell whether they are out of date.

`python requirements/lock.py write` resolves with uv; `… check` works offline: each lock records the
digest of the requirements that it was made from, so it goes stale when those change and not whenever
somebody somewhere publishes a release.
"""

import configparser
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    ROOT / "requirements" / "main.txt": ["--extra", "build"],
    ROOT / "requirements" / "s3.txt": ["--extra", "build", "--extra", "s3", "-c", "requirements/main.txt"],
    ROOT / "requirements" / "granian.txt": ["--extra", "build", "--extra", "granian", "-c", "requirements/main.txt"],
    ROOT / "requirements" / "dev.txt": [
        *("--extra", "build", "--extra", "s3", "--extra", "granian", "--extra", "dev"),
        *("-c", "requirements/s3.txt", "-c", "requirements/granian.txt"),
    ],
    ROOT / "requirements" / "bench.txt": [
        *("--extra", "build", "--extra", "bench"),
        *("-c", "requirements/main.txt", "-c", "requirements/granian.txt"),
    ],
}
RESOLVE = [
    *("uv", "pip", "compile", "setup.cfg", "--quiet", "--no-header"),
    *("--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links"),
]
HEADER = "# Made by `make lock` from setup.cfg; do not edit. Inputs: sha256:"


def inputs_digest() -> str:
    """Digest of everything in setup.cfg that decides what is resolved."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    sections = {
        "python": config["options"]["python_requires"],
        "main": config["options"]["install_requires"],
        **dict(config["options.extras_require"]),
    }
    wanted = {name: sorted(_requirements(text)) for name, text in sections.items()}
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def _requirements(text: str) -> list[str]:
    lines = (re.sub(r"\s+", "", line) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def write() -> None:
    """Resolve the locks; versions already locked stay unless a range forbids them.

    Pass `--upgrade` (`make lock UPGRADE=1`) for the newest allowed versions.
    """
    for path, options in LOCKS.items():
        command = [*RESOLVE, *options, *sys.argv[2:], "--output-file", str(path.relative_to(ROOT))]
        subprocess.run(command, cwd=ROOT, check=True)
        path.write_text(f"{HEADER}{inputs_digest()}\n{path.read_text()}")
        print(f"wrote {path.relative_to(ROOT)}")


def check() -> int:
    """Return 1 and say why if a lock is missing, stale, or names the index it came from."""
    problems = [problem for path in LOCKS if (problem := _problem(path))]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _problem(path: Path) -> str | None:
    name = path.relative_to(ROOT)
    if not path.is_file():
        return f"{name} is missing: run `make lock`."
    text = path.read_text()
    if not text.startswith(f"{HEADER}{inputs_digest()}\n"):
        return f"{name} is stale: setup.cfg changed after it was made. Run `make lock`."
    if re.search(r"^\s*(--(extra-)?index-url|--find-links|-i|-f)\b", text, re.MULTILINE):
        return f"{name} names a package index; locks must work with any."
    return None


if __name__ == "__main__":
    commands = {"write": write, "check": check}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit("usage: lock.py write [uv options] | check")
    sys.exit(commands[sys.argv[1]]())
