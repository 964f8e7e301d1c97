"""What was found: medians, ratios round by round with their range, and the table of what is to be reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.contenders import ALL, PLAIN

# What differs by less than a quarter is level.
LEVEL = 0.8
TITLES = {contender.key: contender.title for contender in ALL}


@dataclass(frozen=True)
class Spread:
    """The median of some values, and how far they lie apart."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


@dataclass(frozen=True)
class Target:
    """Something to be reached: the median of `values` is to be at least, or at most, `bound`."""

    name: str
    values: Sequence[float]
    bound: float
    at_least: bool
    unit: str

    @property
    def reached(self) -> bool:
        """True when it was."""
        found = median(self.values)
        return found >= self.bound if self.at_least else found <= self.bound

    @property
    def sentence(self) -> str:
        """The target, what was found, and whether that is enough."""
        sign = "≥" if self.at_least else "≤"
        verdict = "reached" if self.reached else "NOT reached"
        return f"{self.name}: {spread(self.values)}{self.unit}, wanted {sign} {self.bound:g}{self.unit}: {verdict}"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the range."""
    return Spread(median(values), min(values), max(values))


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return how the values stand to the others, round by round.

    Raises:
        ValueError: they are not of the same rounds.
    """
    return [value / other for value, other in zip(values, others, strict=True)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


# Workload, who, beside whom, and how often as fast at least.
_WANTED = (
    ("w1", "gunicorn", "fastapi_sync", 2.5),
    ("w1", "gunicorn", "drf", 2.5),
    ("w1", "granian", "fastapi_async", 1.0),
    ("w1", "granian", "plain", 0.40),
    ("w2", "gunicorn", "fastapi_sync", 3.0),
    ("w2", "gunicorn", "drf", 3.5),
    ("w2", "gunicorn", "fastapi_async", LEVEL),
    ("w2", "granian", "fastapi_async", 1.3),
    ("w3", "gunicorn", "fastapi_sync", 2.8),
    ("w3", "gunicorn", "drf", 2.0),
    ("w3", "granian", "fastapi_async", 1.0),
)


def targets(results: dict[str, Any]) -> list[Target]:
    """Return the targets of the parts that were measured."""
    return [
        *_rate_targets(results.get("workloads", {})),
        *_login_targets(results.get("login", {})),
        *_file_targets(results.get("files", {})),
        *_depth_targets(results.get("depth", {})),
        *_footprint_targets(results.get("footprint", {})),
    ]


def _rate_targets(workloads: dict[str, Any]) -> list[Target]:
    found = []
    for workload, ours, other, bound in _WANTED:
        rates = workloads.get(workload, {}).get("rate", {})
        if ours in rates and other in rates:
            name = f"{workload.upper()} {TITLES[ours]} / {TITLES[other]}"
            found.append(Target(name, ratios(rates[ours], rates[other]), bound, at_least=True, unit=" x"))
    return found


def _login_targets(login: dict[str, Any]) -> list[Target]:
    if not login:
        return []
    rates, waits = ratios(login["login"], login["hash"]), ratios(login["storm_p99"], login["quiet_p99"])
    return [
        Target("sign-ins / hashes alone", rates, 0.9, at_least=True, unit=" x"),
        Target("p99 of W1 in a storm of sign-ins / in quiet", waits, 3.0, at_least=False, unit=" x"),
    ]


def _file_targets(files: dict[str, Any]) -> list[Target]:
    if not files:
        return []
    download, upload = files["download"], files["upload"]
    rates, seconds = ratios(download["ours"], download["nginx"]), ratios(upload["seconds"], upload["reference"])
    return [
        Target("download of 10 MiB / nginx alone", rates, 0.90, at_least=True, unit=" x"),
        Target("upload of 50 MiB / openssl sha256 and cat", seconds, 1.3, at_least=False, unit=" x"),
        Target("memory that an upload takes", upload["memory"], 30, at_least=False, unit=" MiB"),
    ]


def _depth_targets(depth: dict[str, Any]) -> list[Target]:
    if not depth:
        return []
    few, many = min(depth, key=int), max(depth, key=int)
    name = f"cost of a page of {int(many):,} rows / of {int(few):,} rows"
    return [Target(name, ratios(depth[few], depth[many]), 1.5, at_least=False, unit=" x")]


def _footprint_targets(footprint: dict[str, Any]) -> list[Target]:
    found = []
    for key in ("gunicorn", "granian"):
        if key in footprint:
            title, values = TITLES[key], footprint[key]
            found.append(Target(f"start, {title}", values["start"], 2.0, at_least=False, unit=" s"))
            found.append(Target(f"memory per process, {title}", values["memory"], 110, at_least=False, unit=" MiB"))
    return found


def text(results: dict[str, Any]) -> str:
    """Return all that was found as a text for people."""
    parts = [_workload(key, found) for key, found in results.get("workloads", {}).items()]
    if "footprint" in results:
        rows = [[TITLES[key], spread(v["start"]), spread(v["memory"])] for key, v in results["footprint"].items()]
        parts.append(table("Start and memory", ["", "s to ready", "MiB per process"], rows))
    others = {
        "login": ("login",),
        "depth": ("depth",),
        "download": ("files", "download"),
        "upload": ("files", "upload"),
    }
    for title, path in others.items():
        found = results
        for name in path:
            found = found.get(name, {})
        if found:
            parts.append(table(title.capitalize(), ["", "median (range)"], [[k, spread(v)] for k, v in found.items()]))
    parts.append("To reach\n" + "\n".join(f"  {target.sentence}" for target in targets(results)))
    return "\n\n".join(parts)


def _workload(key: str, found: dict[str, Any]) -> str:
    rates = found["rate"]
    rows: list[list[object]] = []
    for contender, values in sorted(rates.items(), key=lambda item: -median(item[1])):
        share = spread(ratios(values, rates[PLAIN.key])) if PLAIN.key in rates else ""
        waits = f"{median(found['p50'][contender]):.1f}, {median(found['p99'][contender]):.1f}"
        cpu = spread(found["cpu"][contender])
        rows.append([TITLES[contender], spread(values), share, waits, cpu])
    head = ["", "requests/s", "of the limit", "p50, p99 ms", "CPU µs"]
    return table(f"{key.upper()}  {found['title']}", head, rows)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of texts, its columns as wide as they have to be."""
    cells = [list(head), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([title, *(f"  {line}" for line in lines)])
