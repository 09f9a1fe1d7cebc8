"""A soak test: two days in minutes at 0.7 of capacity, while what the server holds is counted: `make soak-short`, `make soak`.

Memory, threads, open files and memfds of the server and its lanes are read from /proc every two seconds; the first quarter of the run is
warm-up. Each phase of the first day is compared with the same phase of the second, so that the load's own swing isn't taken for growth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import yaml
from rich.console import Console

from benchmarks.command import run
from benchmarks.harness import BUILD, TIDEGATE, BenchError, Report, Target, tidegate
from examples.console import heading, step
from examples.prepare import prepare

LEVEL = 0.7  # of capacity, at the day's busiest
EVERY = 2.0  # seconds between looks
TRIAL = 10  # seconds in which capacity is measured
MIX: list[dict[str, Any]] = [
    {"model": "digits", "share": 8, "rows": [1, 4]},
    {
        "model": "minilm",
        "share": 2,
        "length": {"kind": "lognormal", "median": 28, "sigma": 0.6, "min": 8, "max": 128},
        "values": {"input_ids": {"low": 1000, "high": 20000}, "attention_mask": {"low": 1, "high": 1}},
    },
]
PROTOCOLS = ("http", "grpc")  # half of the load each


@dataclass(frozen=True, slots=True)
class Look:
    """What a server and its children hold: bytes of memory that are theirs alone (USS), and counts."""

    at: float
    memory: int
    threads: int
    files: int
    memfds: int


@dataclass(slots=True)
class Watch:
    """Looks at a process tree until it's stopped."""

    pid: int
    looks: list[Look] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        begun = monotonic()
        while not self.stop.wait(EVERY):
            self.looks.append(look(self.pid, monotonic() - begun))


def look(pid: int, at: float) -> Look:
    """What a process and its children hold now."""
    root = psutil.Process(pid)
    every = [root, *root.children(recursive=True)]
    files = [link for process in every for link in _files(process.pid)]
    memory = sum(process.memory_full_info().uss for process in every)
    return Look(at, memory, sum(process.num_threads() for process in every), len(files), sum("memfd:" in link for link in files))


def _files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue


@contextmanager
def watching(pid: int) -> Iterator[list[Look]]:
    """The looks that are taken while the block runs."""
    watch = Watch(pid)
    thread = threading.Thread(target=watch.watch, daemon=True)
    thread.start()
    try:
        yield watch.looks
    finally:
        watch.stop.set()
        thread.join()


def soak(minutes: float, report: Report, console: Console) -> None:
    """Fill the report."""
    heading(console, "The models")
    models = prepare(console)
    heading(console, f"Soak, {minutes:g} minutes")
    with tidegate(models, "soak") as ours:
        with step(console, "capacity, in a closed loop"):
            capacity = sum(_load(ours.ready, protocol, TRIAL, {"closed": {"users": 8}})["whole"]["answered"] for protocol in PROTOCOLS) / 2
        idle = look(ours.pid, 0.0)
        peak = LEVEL * capacity
        with step(console, f"two days between {peak / 10:.0f} and {peak:.0f} requests/s"), watching(ours.pid) as looks:
            found = _together(ours.ready, minutes * 60, peak / len(PROTOCOLS))
        after = look(ours.pid, 0.0)
        status = ours.stop()
    report.details |= {"capacity": capacity, "looks": [asdict(each) for each in looks], "idle": asdict(idle), "after": asdict(after)}
    report.details["loads"] = [load["whole"] | {"why": load["why"]} for load in found]
    _judge(report, looks, found, idle, after)
    report.targets.append(Target("the server's exit status at SIGTERM", status, 0, at_most=True))


def _judge(report: Report, looks: list[Look], found: list[dict[str, Any]], idle: Look, after: Look) -> None:
    requests = sum(load["whole"]["requests"] for load in found)
    bad = sum(round(load["whole"]["requests"] * (load["whole"]["failed"] + load["whole"]["refused"])) for load in found)
    why = "; ".join(f"{count} x {reason}" for load in found for reason, count in load["why"].items())
    report.targets.append(Target("requests that failed or were refused", bad, 0, at_most=True, note=f"of {requests:,}. {why}"[:300]))
    first, second = _days(looks)
    growth = statistics.median(each.memory for each in second) / statistics.median(each.memory for each in first) - 1
    note = f"{_mib(first)} → {_mib(second)} MiB"
    report.targets.append(Target("memory's growth from one day to the next", growth, 0.02, at_most=True, note=note))
    for name in ("threads", "files", "memfds"):
        grown = statistics.median(getattr(each, name) for each in second) - statistics.median(getattr(each, name) for each in first)
        report.targets.append(Target(f"{name} more on the second day", grown, 0, at_most=True))
    note = f"{idle.files} files, {idle.threads} threads before; {after.files} and {after.threads} after"
    report.targets.append(Target("memfds more at the end than before", after.memfds - idle.memfds, 0, at_most=True, note=note))


def _days(looks: list[Look]) -> tuple[list[Look], list[Look]]:
    """The looks of the first day's second half, and of the second day's: the first quarter of the run is warm-up."""
    end = looks[-1].at
    return [each for each in looks if 0.25 <= each.at / end < 0.5], [each for each in looks if each.at / end >= 0.75]


def _mib(looks: list[Look]) -> str:
    return f"{statistics.median(each.memory for each in looks) / 2**20:,.1f}"


def _together(ready: dict[str, Any], seconds: float, peak: float) -> list[dict[str, Any]]:
    """The load of each protocol, at the same time."""
    shape = {"kind": "diurnal", "to": peak, "periods": 2}
    runs = [_start(ready, protocol, seconds, {"arrivals": {"rate": peak / 10, "shape": shape}}) for protocol in PROTOCOLS]
    return [_finished(process, output, seconds) for process, output in runs]


def _load(ready: dict[str, Any], protocol: str, seconds: float, loop: dict[str, Any]) -> dict[str, Any]:
    process, output = _start(ready, protocol, seconds, loop)
    return _finished(process, output, seconds)


def _start(ready: dict[str, Any], protocol: str, seconds: float, loop: dict[str, Any]) -> tuple[subprocess.Popen[str], Path]:
    scenario, output = BUILD / f"soak-{protocol}.yaml", BUILD / f"soak-{protocol}.json"
    output.unlink(missing_ok=True)
    scenario.write_text(yaml.safe_dump({"duration": seconds, "warmup": 1, "target": {"protocol": protocol}, "mix": MIX, **loop}))
    url = ready["grpc"] if protocol == "grpc" else f"http://{ready['http']}"
    command = [TIDEGATE, "loadtest", "run", str(scenario), "--url", url, "--json", str(output), "--html", str(output.with_suffix(".html"))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True), output


def _finished(process: subprocess.Popen[str], output: Path, seconds: float) -> dict[str, Any]:
    try:
        errors = process.communicate(timeout=seconds + 120)[1]
    finally:
        process.kill()
    if not output.is_file():
        raise BenchError(f"the load generator failed (status {process.returncode}): {errors.strip()[-500:]}")
    found: dict[str, Any] = json.loads(output.read_bytes())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    chosen = parser.parse_args()
    sys.exit(run("soak", lambda report, console: soak(chosen.minutes, report, console)))
