"""The picture of the three workloads: `python -m bench.plot results.json results.png`, with the peers' interpreter."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

OURS = ("gunicorn", "granian", "limited")
COLOURS = {True: "#2b6cb0", False: "#a0aec0"}


def draw(results: dict[str, Any], titles: dict[str, str], path: Path) -> None:
    """Write the picture: for each workload a bar for each contender, and a line for the range of its rounds."""
    workloads = results["workloads"]
    figure, axes = plt.subplots(len(workloads), 1, figsize=(9, 2.6 * len(workloads)), layout="constrained")
    for axis, found in zip(axes, workloads.values(), strict=True):
        rates = sorted(found["rate"].items(), key=lambda item: median(item[1]))
        middles = [median(values) for _, values in rates]
        ranges = [
            [middle - min(values) for middle, (_, values) in zip(middles, rates, strict=True)],
            [max(values) - middle for middle, (_, values) in zip(middles, rates, strict=True)],
        ]
        colours = [COLOURS[key in OURS] for key, _ in rates]
        axis.barh([titles[key] for key, _ in rates], middles, xerr=ranges, color=colours, capsize=3, height=0.7)
        axis.set_title(found["title"], loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("requests per second: median, and range of the rounds", fontsize=9)
    settings, machine = results["settings"], results["machine"]
    note = f"{settings['processes']} processes, {settings['connections']} connections, {machine['processor']}"
    figure.suptitle(note, fontsize=8, color="#4a5568")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    measured = json.loads(Path(sys.argv[1]).read_text())
    draw(measured, measured["settings"]["titles"], Path(sys.argv[2]))
