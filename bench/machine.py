"""What the measurements need of a machine, and what it is: named in the results, since only like is comparable."""

import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from bench.contenders import CORES, PYTHON
from bench.seed import plain
from tests.servers import NGINX

# What is missing, and how it comes to Debian and its like.
PACKAGES = {"wrk": "wrk", "openssl": "openssl", "nginx": "nginx-light"}
_PEERS = ("granian", "fastapi", "uvicorn", "sqlmodel", "asyncpg", "django", "djangorestframework", "gunicorn")
_OURS = ("flask", "sqlalchemy", "psycopg", "marshmallow", "gunicorn")


def missing() -> list[str]:
    """Return a line for each tool that is not there; nothing is left out in silence."""
    there = {"wrk": shutil.which("wrk"), "openssl": shutil.which("openssl"), "nginx": NGINX}
    lines = [f"{name} is missing: apt install {PACKAGES[name]}" for name, path in there.items() if path is None]
    if platform.system() != "Linux":
        lines.append("Linux is needed: what memory a process holds is read from /proc")
    if not Path(PYTHON).exists():
        lines.append("the peers are not installed: start with `make bench`")
    return lines


def description(admin_url: str) -> dict[str, Any]:
    """Return what the results depend on."""
    with psycopg.connect(plain(admin_url)) as connection:
        postgres = connection.execute("SHOW server_version").fetchone()
    return {
        "processor": _processor(),
        "cores": CORES,
        "python": platform.python_version(),
        "postgresql": postgres[0] if postgres else "",
        "wrk": _first_number(["wrk", "-v"]),
        "nginx": _first_number([NGINX or "nginx", "-v"]),
        "ours": {name: version(name) for name in _OURS},
        "peers": _peers(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _first_number(command: list[str]) -> str:
    output = subprocess.run(command, check=False, capture_output=True, text=True)
    match = re.search(r"\d+(\.\d+)+", output.stdout + output.stderr)
    return match[0] if match else "unknown"


def _peers() -> dict[str, str]:
    code = f"from importlib.metadata import version\nfor name in {_PEERS!r}: print(name, version(name))"
    output = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines())
