"""The whole measurement, part by part: databases, servers, rounds, and what is written at the end."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import alike, depth, files, footprint, login, machine, report, rounds
from bench.contenders import ALL, CONNECTIONS, OURS, OURS_LIMITED, PROCESSES, PYTHON, THREADS, Contender, serving
from bench.pace import Pace
from bench.seed import make_database
from bench.workloads import make_callers
from tests.servers import run_postgres, run_valkey
from tests.servers.process import scratch_directory

FOLDER = Path(__file__).parent
# The last leaves a million rows behind, after which the database has work of its own to do.
PARTS = ("workloads", "login", "files", "footprint", "depth")
FEW_ROWS, ROWS, MANY_ROWS = 1000, 100_000, 1_000_000


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns that everybody has")
    parser.add_argument("--seconds", type=float, default=5, help="length of a turn")
    parser.add_argument("--rows", type=int, default=ROWS, help="accounts in the database of the workloads")
    parser.add_argument("--many-rows", type=int, default=MANY_ROWS, help="accounts in the long list")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, separated by commas")
    parser.add_argument("--only", default="", help="some of the contenders, separated by commas")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results.json and results.png")
    parser.add_argument("--quick", action="store_true", help="does everything work? Its numbers mean nothing")
    found = parser.parse_args(arguments)
    found.parts = found.parts.split(",")
    keys = [key for key in found.only.split(",") if key]
    found.contenders = [contender for contender in ALL if not keys or contender.key in keys]
    unknown = (set(found.parts) - set(PARTS)) | (set(keys) - {contender.key for contender in ALL})
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if found.quick:
        found.rounds, found.seconds, found.rows, found.many_rows = 1, 1, FEW_ROWS, 10 * FEW_ROWS
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure what was asked for, print it, and write results.json and the plot."""
    chosen = options(arguments)
    lacking = machine.missing()
    if lacking:
        sys.exit("\n".join(f"bench: {line}" for line in lacking))
    with ExitStack() as stack:
        admin_url = stack.enter_context(run_postgres())
        redis_url = stack.enter_context(run_valkey())
        folder = stack.enter_context(scratch_directory("bench-"))
        bench = Bench(chosen, admin_url, redis_url, Pace(chosen.rounds, chosen.seconds, folder))
        results: dict[str, Any] = {
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.description(admin_url),
            "settings": bench.settings(),
            **{part: bench.measure(part) for part in chosen.parts},
        }
    results["targets"] = [
        {"name": target.name, "reached": target.reached, "found": str(report.spread(target.values))}
        for target in report.targets(results)
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{report.text(results)}\n\nwrote {path}")
    if "workloads" in results:
        subprocess.run([PYTHON, "-m", "bench.plot", path, path.with_suffix(".png")], cwd=FOLDER.parent, check=True)


class Bench:
    """The servers that all parts share, and the databases, each made when it is first wanted."""

    def __init__(self, chosen: argparse.Namespace, admin_url: str, redis_url: str, pace: Pace) -> None:
        self._chosen = chosen
        self._admin_url = admin_url
        self._redis_url = redis_url
        self._pace = pace
        self._databases: dict[int, str] = {}

    def settings(self) -> dict[str, Any]:
        """Return what was the same for everybody."""
        chosen = self._chosen
        return {
            "processes": PROCESSES,
            "threads": THREADS,
            "connections": CONNECTIONS,
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "rows": chosen.rows,
            "titles": {contender.key: contender.title for contender in chosen.contenders},
        }

    def measure(self, part: str) -> dict[str, Any]:
        """Measure one part."""
        self._pace.say(f"--- {part}")
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "workloads": self._workloads,
            "login": self._login,
            "depth": self._depth,
            "files": self._files,
            "footprint": self._footprint,
        }
        return parts[part]()

    def _database(self, rows: int) -> str:
        if rows not in self._databases:
            self._pace.say(f"filling a database with {rows:,} accounts")
            self._databases[rows] = make_database(self._admin_url, f"bench_{rows}", rows=rows)
        return self._databases[rows]

    def _store(self, contender: Contender) -> str | None:
        return self._redis_url if contender is OURS_LIMITED else None

    def _workloads(self) -> dict[str, Any]:
        url = self._database(self._chosen.rows)
        callers = make_callers(url, self._chosen.rows)
        with ExitStack() as stack:
            servers = [
                stack.enter_context(serving(contender, url, redis_url=self._store(contender)))
                for contender in self._chosen.contenders
            ]
            alike.check_alike(servers, callers)
            self._pace.say("everybody answers alike")
            return rounds.measure(servers, callers, url, self._pace)

    def _login(self) -> dict[str, Any]:
        rows = self._chosen.rows
        url = self._database(rows)
        with serving(OURS, url) as server:
            return login.measure(server, make_callers(url, rows), self._pace, rows=rows)

    def _depth(self) -> dict[str, Any]:
        databases = {rows: self._database(rows) for rows in (FEW_ROWS, self._chosen.many_rows)}
        return depth.measure(databases, self._pace)

    def _files(self) -> dict[str, Any]:
        url = self._database(self._chosen.rows)
        return files.measure(url, make_callers(url, self._chosen.rows), self._pace)

    def _footprint(self) -> dict[str, Any]:
        url = self._database(self._chosen.rows)
        callers = make_callers(url, self._chosen.rows)
        return footprint.measure(self._chosen.contenders, callers, url, self._store, self._pace)
