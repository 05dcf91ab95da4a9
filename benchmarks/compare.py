"""fastbp side by side with its peers: ``python -m benchmarks.compare``.

Each peer works in processes of its own, one for each number of threads, which sleep while others run. A round gives
each one turn and measures the machine. A step is compared with the floor, FLOPs/peak + bytes/bandwidth on the
same number of threads, and with the fastest peer on at most that many.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastbp.validation import MissingExtraError, require

from .benchmarks import machine
from .benchmarks.workloads import WORKLOADS
from .peers import EPOCHS, PEERS, serve

#: Seconds after a turn, for threads that spin for a while before they sleep.
PAUSE = 0.25
#: Relative difference of losses that rounding explains.
TOLERANCE = 0.01
TITLES = {
    "workload": "workload",
    "shape": "sizes",
    "batch": "batch",
    "loss": "loss",
    "threads": "threads",
    "step": "µs per step (quartiles)",
    "best": "best",
    "over_floor": "time / floor",
    "peer": "best peer",
    "peer_step": "its µs per step",
    "peer_over_ours": "its time / ours",
    "reached": "loss reached",
    "peer_reached": "its",
}


class WorkerError(Exception):
    """A peer cannot do what it was asked to."""


class Worker:
    """A peer's process."""

    def __init__(self, name: str, threads: int):
        self.name, self.threads, self.label = name, threads, label(name, threads)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, threads), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *request: Any) -> float:
        """Have a method of `peers.Runner` called; raises WorkerError."""
        try:
            self.connection.send(request)
            failed, result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1)
            raise WorkerError(f"its process ended with code {self.process.exitcode}") from None
        if failed:
            raise WorkerError(result)
        return result

    def close(self) -> None:
        self.connection.close()
        self.process.join(5)


class Spread(NamedTuple):
    """A sample in short."""

    median: float
    best: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, min(values), low, high)


def label(name: str, threads: int) -> str:
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(name: str, workers: Sequence[Worker], threads: Sequence[int], rounds: int, seconds: float) -> dict:
    """All rounds of one workload, in plain numbers."""
    runs: dict[Worker, dict] = {}
    skipped = {}
    for worker in workers:
        say(f"{name}: preparing {worker.label}")
        try:
            loss = worker.ask("prepare", name, seconds)
        except WorkerError as error:
            skipped[worker.label] = str(error)
            say(f"{name}: skipping {worker.label}: {error}")
        else:
            runs[worker] = {"peer": worker.name, "threads": worker.threads, "loss": loss, "microseconds": []}
    limits: list[dict] = [{"threads": n, "peak": [], "bandwidth": []} for n in threads]
    for k in range(rounds):
        say(f"{name}: round {k + 1} of {rounds}")
        for limit in limits:
            limit["peak"].append(machine.peak(limit["threads"]))
            limit["bandwidth"].append(machine.bandwidth(limit["threads"]))
        for worker, run in runs.items():
            run["microseconds"].append(worker.ask("turn"))
            time.sleep(PAUSE)
    return {"workload": name, "limits": limits, "runs": list(runs.values()), "skipped": skipped}


def summarize(result: dict) -> list[dict[str, Any]]:
    """A result of `measure` as one row for each number of threads; times are in microseconds."""
    workload = WORKLOADS[result["workload"]]
    spreads = {(run["peer"], run["threads"]): Spread.of(run["microseconds"]) for run in result["runs"]}
    losses = {(run["peer"], run["threads"]): run["loss"] for run in result["runs"]}
    rows = []
    for limit in result["limits"]:
        ours = "fastbp", limit["threads"]
        if ours not in spreads:
            continue
        step = spreads[ours]
        floor = 1e6 * workload.floor(float(np.median(limit["peak"])), float(np.median(limit["bandwidth"])))
        row = {name: getattr(workload, name) for name in ("shape", "batch", "loss")}
        row |= {"workload": workload.name, "threads": limit["threads"], "step": step, "best": step.best}
        row |= {"floor": floor, "over_floor": step.median / floor, "reached": losses[ours]}
        others = [key for key in spreads if key[0] != "fastbp" and key[1] <= limit["threads"]]
        if others:
            peer = min(others, key=lambda key: spreads[key].median)
            row |= {"peer": label(*peer), "peer_step": spreads[peer], "peer_reached": losses[peer]}
            row["peer_over_ours"] = spreads[peer].median / step.median
        rows.append(row)
    return rows


def disagreements(result: dict) -> list[str]:
    """Peers whose loss differs from fastbp's after the same steps."""
    ours = next((run["loss"] for run in result["runs"] if run["peer"] == "fastbp"), np.nan)
    return [
        f"{result['workload']}: {run['peer']} reached a loss of {run['loss']:.6g}, fastbp {ours:.6g}"
        for run in result["runs"]
        if abs(run["loss"] - ours) > TOLERANCE * abs(ours)
    ]


def best_of_each(result: dict) -> dict[str, Spread]:
    """The time of each peer with its best number of threads."""
    spreads = sorted((Spread.of(run["microseconds"]), run["peer"]) for run in result["runs"])
    return {peer: spread for spread, peer in reversed(spreads)}


def cell(x: Any) -> str:
    """A cell's text; more than three digits a time is not worth."""
    if isinstance(x, Spread):
        return f"{cell(x.median)} ({cell(x.low)} to {cell(x.high)})"
    if isinstance(x, float):
        return f"{x:.0f}" if x >= 100 else f"{x:#.3g}"
    return str(x)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table that reads well as plain text."""
    cells = [[cell(x) for x in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells)


def report(record: dict) -> str:
    """The whole comparison in Markdown."""
    host, settings, results = record["host"], record["settings"], record["results"]
    bests = {result["workload"]: best_of_each(result) for result in results}
    names = [name for name in PEERS if name not in record["skipped"]]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    paragraphs = [
        f"{host['processor']}, {host['cores']} cores, {host['instruction_set']}; {host['system']}; "
        f"Python {host['python']}, {versions}. Medians of {settings['rounds']} rounds of {settings['seconds']:g} s; "
        f"losses after {EPOCHS} epochs.",
        table([*TITLES.values()], [[row.get(key, "-") for key in TITLES] for r in results for row in summarize(r)]),
        "Microseconds per step of each with its best number of threads:",
        table(
            ["workload", *names],
            [[key, *(best[name].median if name in best else "-" for name in names)] for key, best in bests.items()],
        ),
    ]
    paragraphs += [f"Skipped: {name}: {reason}" for name, reason in record["skipped"].items()]
    for result in results:
        paragraphs += [f"Skipped: {result['workload']}: {who}: {why}" for who, why in result["skipped"].items()]
        paragraphs += [f"Losses differ: {line}" for line in disagreements(result)]
    return "\n\n".join(paragraphs) + "\n"


def draw(results: Sequence[dict], path: Path) -> None:
    """Bars of the time per step of each peer with its best number of threads, and the floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(ylabel="µs per step", yscale="log")
    width = 0.8 / len(PEERS)
    for k, name in enumerate(PEERS):
        bars = [(i, best[name]) for i, best in enumerate(map(best_of_each, results)) if name in best]
        places = [i + (k - (len(PEERS) - 1) / 2) * width for i, _ in bars]
        whiskers = [[bar.median - bar.low for _, bar in bars], [bar.high - bar.median for _, bar in bars]]
        axes.bar(places, [bar.median for _, bar in bars], width, yerr=whiskers, label=name)
    for i, result in enumerate(results):
        for row in summarize(result)[-1:]:
            axes.hlines(row["floor"], i - 0.4, i + 0.4, "black", "dotted", label="_" * (i > 0) + "floor")
    axes.set_xticks(range(len(results)), [result["workload"] for result in results])
    axes.legend(ncols=3)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser("python -m benchmarks.compare", description="Compare fastbp with its peers.")
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS], metavar="NAME", help="|".join(WORKLOADS))
    add("--rounds", type=int, default=7, metavar="N", help="turns of each peer (7)")
    add("--seconds", type=float, default=1.0, metavar="S", help="length of a turn (1)")
    add("--threads", nargs="+", type=int, default=[1, cores], metavar="N", help="numbers of threads (1 and all cores)")
    add("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER", help="(benchmarks/results)")
    options = parser.parse_args(arguments)
    options.threads = sorted(set(options.threads))
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, it is {options.rounds}")
    if not 0 < options.seconds < float("inf"):
        parser.error(f"--seconds must be above 0, it is {options.seconds}")
    if not 1 <= options.threads[0] <= options.threads[-1] <= cores:
        parser.error(f"--threads must be from 1 to {cores}, the number of cores")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        require("matplotlib", "plot")
    except MissingExtraError as error:
        sys.exit(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    skipped = {}
    for name, peer in PEERS.items():
        missing = [module for module in peer.needs if importlib.util.find_spec(module) is None]
        if missing:
            skipped[name] = f"not installed: {', '.join(missing)}"
            say(f"skipping {name}: {skipped[name]}")
    workers = [Worker(name, n) for name in PEERS if name not in skipped for n in options.threads]
    try:
        results = [
            measure(name, workers, options.threads, options.rounds, options.seconds) for name in options.workloads
        ]
    finally:
        for worker in workers:
            worker.close()
    record = {
        "host": machine.describe(),
        "settings": {"rounds": options.rounds, "seconds": options.seconds},
        "skipped": skipped,
        "results": results,
    }
    (options.output / "compare.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.output / "compare.md").write_text(report(record), encoding="utf-8")
    draw(results, options.output / "compare.png")
    print(report(record))


if __name__ == "__main__":
    main()
