"""What every benchmark needs: the load generator, loads against a server, interleaved repeats, targets and their report."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.wire import Answer, split_address
from examples.serving import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
LOADGEN_SOURCE = ROOT / "loadtests" / "peers" / "loadgen.c"
TIDEGATE = str(Path(sys.executable).with_name("tidegate"))

T = TypeVar("T")


class BenchError(Exception):
    """A measurement that can't be trusted or made: the message says why."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A request's bytes, and what the body of its answer must be: its length (0: any) and its last bytes."""

    request: bytes
    length: int = 0
    tail: bytes = b""


@dataclass(frozen=True, slots=True)
class Load:
    """How a server is asked. `rate` is requests/s over all connections, 0 for each as soon as the last is answered.

    With `deadline` (seconds) requests come by one Poisson process, each over a connection that is idle, and 503 is an answer: refused.
    """

    connections: int
    seconds: float
    warmup: float = 0.5
    rate: float = 0.0
    seed: int = 1
    deadline: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a load without a single error. Latencies in ms, of the `ok` that were answered with 200; with a deadline, `within`
    of them came in time, `refused` were answered with 503, and `unsent` found no connection idle before the end."""

    ok: int
    refused: int
    within: int
    unsent: int
    seconds: float
    rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    client_cpu_s: float

    @property
    def in_time(self) -> float:
        """Share of what was asked that was answered within the deadline."""
        return self.within / (self.ok + self.refused + self.unsent)

    @property
    def goodput(self) -> float:
        """Answers within the deadline, a second."""
        return self.within / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is held to a bound: at least `must` or, with `at_most`, at most. `median` etc. of what is told by `note`. NaN is what
    couldn't be measured, and not met."""

    name: str
    value: float
    must: float
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.must if self.at_most else self.value >= self.must

    def as_dict(self) -> dict[str, Any]:
        """The form that the report has on disk."""
        bound = f"{'<=' if self.at_most else '>='} {self.must:g}"
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "must": bound,
            "met": self.met,
            "note": self.note,
        }


@dataclass(slots=True)
class Report:
    """All that a benchmark found. `details` holds every single measurement."""

    name: str
    targets: list[Target] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def write(self, folder: Path = BUILD) -> Path:
        """Write NAME.json, whole or not at all."""
        document = {
            "benchmark": self.name,
            "targets": [target.as_dict() for target in self.targets],
            "details": self.details,
            "machine": machine(),
            "seconds": round(time.monotonic() - self.started, 1),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        path = folder / f"{self.name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.replace(path)
        return path

    def show(self, console: Console) -> None:
        """The targets as a table."""
        table = Table("target", "value", "must be", "met", "from")
        for target in self.targets:
            form = target.as_dict()
            met = "[green]yes[/green]" if target.met else "[red]no[/red]"
            table.add_row(target.name, _figure(target.value), str(form["must"]), met, target.note)
        console.print(table)


def tidegate(repository: Path, log: str, *flags: str) -> ServerProcess:
    """Our server over `repository` on free ports, not started yet."""
    command = [TIDEGATE, "serve", "--repository", str(repository), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    return ServerProcess([*command, *flags], BUILD / f"{log}.log")


def python_server(module: str, *arguments: str, log: str) -> ServerProcess:
    """A server that is a module of this project, not started yet."""
    return ServerProcess([sys.executable, "-m", module, *arguments], BUILD / f"{log}.log")


def loadgen() -> Path:
    """The load generator, compiled when its source is newer. Raises BenchError that says what is missing."""
    digest = hashlib.sha256(LOADGEN_SOURCE.read_bytes()).hexdigest()[:12]
    program = BUILD / f"loadgen-{digest}"
    if program.is_file():
        return program
    compiler = next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise BenchError("no C compiler for the load generator: install gcc or clang (Debian: apt-get install gcc libc6-dev), or set CC")
    BUILD.mkdir(parents=True, exist_ok=True)
    partial = program.with_suffix(".partial")
    command = [compiler, "-O2", "-std=gnu11", "-o", str(partial), str(LOADGEN_SOURCE), "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"the load generator doesn't compile ({' '.join(command)}):\n{result.stderr.strip()}")
    partial.replace(program)
    return program


def write_shots(name: str, shots: Sequence[Shot]) -> Path:
    """The request file that the load generator reads."""
    path = BUILD / f"{name}.requests"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<I", len(shots)))
        for shot in shots:
            file.write(struct.pack("<III", len(shot.request), shot.length, len(shot.tail)) + shot.request + shot.tail)
    return path


def exact_shots(requests: Sequence[bytes], answers: Sequence[Answer]) -> list[Shot]:
    """Each request with the answer it got once, all of it: for models whose answer is the same to the bit, however it was batched."""
    return [Shot(request, len(answer.body), answer.body) for request, answer in zip(requests, answers, strict=True)]


def run_load(shots: Path, address: str, load: Load) -> Measured:
    """Ask a server, and wait for the end. Raises BenchError when a single answer was wrong or missing."""
    with background_load(shots, address, load) as running:
        return running.result()


@dataclass(slots=True)
class RunningLoad:
    """A load that is under way."""

    process: subprocess.Popen[str]
    patience: float

    def result(self) -> Measured:
        """Its figures, once it ends by itself."""
        output, errors = self.process.communicate(timeout=self.patience)
        if self.process.returncode:
            raise BenchError(f"the load generator failed (status {self.process.returncode}): {errors.strip()}")
        found = json.loads(output)
        if found["errors"] or not found["ok"] + found["refused"] + found["unsent"]:
            why = f"first: {found['bad_reason']}, status {found['bad_status']}"
            raise BenchError(f"{found['errors']} of {found['ok'] + found['errors']} answers were wrong or missing ({why})")
        return Measured(**{field.name: found[field.name] for field in fields(Measured)})


@contextmanager
def background_load(shots: Path, address: str, load: Load) -> Iterator[RunningLoad]:
    """A load that runs while the block does, and is ended with it."""
    host, port = split_address(address)
    figures = (load.connections, load.seconds, load.warmup, load.rate, load.seed, *([load.deadline * 1e3] if load.deadline else []))
    command = [str(loadgen()), str(shots), host, str(port), *(f"{figure:g}" for figure in figures)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield RunningLoad(process, load.warmup + load.seconds + 30)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def interleave(measures: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Each measure `repeats` times, in turn, every other round in reverse, so that a slow spell of the machine hits all alike."""
    found: dict[str, list[T]] = {name: [] for name in measures}
    for round_number in range(repeats):
        for name in list(measures)[:: 1 if round_number % 2 == 0 else -1]:
            found[name].append(measures[name]())
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over median."""
    return statistics.median(ours) / statistics.median(theirs)


def spread(values: Sequence[float]) -> str:
    """ "median (least-most)"."""
    return f"{_figure(statistics.median(values))} ({_figure(min(values))}-{_figure(max(values))})"


def as_details(found: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Measurements in the form that a report keeps."""
    return {name: [asdict(measured) for measured in several] for name, several in found.items()}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
