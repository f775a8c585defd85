"""What the benchmarks share: taking turns, peaks of memory, goals, and tables.

A result is {title: rows}, a row {column: text, number, bool or None}. Only ratios within one run are compared, never
times of two runs.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

CLIP = Path(__file__).parents[1] / "data" / "clips" / "two_bell.mp4"
Result = dict[str, list[dict[str, Any]]]
MIB = 2**20


# ------------------------------------------------------------------ measuring


class Turns:
    """Seconds of every variant in every round: variant -> one number a round. cpu: of this process, all its threads;
    wall: of the clock on it."""

    def __init__(self, variants: Mapping[str, Callable[[], object]], rounds: int, drop: int = 2) -> None:
        """Every round runs each variant once, in an order drawn by lot: what ran before a call leaves it warm or cold caches.
        drop: first rounds that do not count. Garbage is collected between the calls, not in them."""
        names, draw = list(variants), random.Random(0)
        self.cpu: dict[str, list[float]] = {name: [] for name in names}
        self.wall: dict[str, list[float]] = {name: [] for name in names}
        gc.collect()
        gc.freeze()  # what is there already need not be gone through in each round
        try:
            for i in tqdm(range(rounds + drop), desc="rounds", leave=False, disable=None):
                for name in draw.sample(names, len(names)):
                    gc.collect()
                    gc.disable()
                    cpu, wall = time.process_time(), time.perf_counter()
                    variants[name]()
                    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                    gc.enable()
                    if i >= drop:
                        self.cpu[name].append(cpu)
                        self.wall[name].append(wall)
        finally:
            gc.enable()
            gc.unfreeze()

    def ratio(self, name: str, base: str, clock: str = "cpu") -> float:
        """The median over the rounds of one variant's time over another's in the same round."""
        times = getattr(self, clock)
        return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))

    def median(self, name: str, clock: str = "cpu") -> float:
        return statistics.median(getattr(self, clock)[name])


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that tensors (on the CPU) held at once while this ran, beyond what was there before: exact, by
    torch's own record of every allocation."""
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        record.export_chrome_trace(str(file))
        events = [e for e in json.loads(file.read_text())["traceEvents"] if e["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler's native code tells standard error that it begins and ends."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def goal(what: str, came: float | None, most: float) -> dict[str, Any]:
    """A row of the table "goals"; came: None where it could not be measured."""
    return {"goal": what, "at most": most, "came out": came, "reached": None if came is None else bool(came <= most)}


def largest(a: Any, b: Any) -> float:
    """The greatest absolute difference of two tensors, or of two equally long lists of them."""
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape, (a.shape, b.shape)
        return float((a - b).abs().max())
    return max(largest(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------ running and showing


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--rounds", type=int, default=rounds)
    out.add_argument("--threads", type=int, default=1, help="of torch; one is steadiest for small models")
    out.add_argument("--json", type=Path, help="also write the result here")
    return out


def finish(result: Result, file: Path | None) -> None:
    """Prints the tables; writes them, and what they were measured on."""
    console = Console(width=150)
    for title, rows in result.items():
        table = Table(title=title, title_justify="left", box=None, header_style="bold")
        for i, column in enumerate(rows[0]):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*map(written, row.values()))
        console.print(table, "")
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), "tables": result}, indent=1) + "\n")


def written(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.2g}" if abs(value) < 1 else f"{value:.0f}"


def markdown(result: Result) -> str:
    lines = []
    for title, rows in result.items():
        lines += [f"**{title}**", "", "| " + " | ".join(rows[0]) + " |", "|---|" + "---:|" * (len(rows[0]) - 1)]
        lines += ["| " + " | ".join(map(written, row.values())) + " |" for row in rows] + [""]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Never a name of a computer or of a folder."""
    out = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    out |= {"processor": platform.machine(), "python": platform.python_version()}
    for package in ("torch", "transformers", "nnsight", "transformer-lens"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = None
    return out
