"""Triton's own load generator against this server: `python -m tests.conformance.perf`, `make conformance`. About three minutes.

Every run must end with status 0 and a throughput above 0 at each concurrency; then so must a repository as Triton's users have it, with
nothing but config.pbtxt. Exit status 1 where one failed. What perf_analyzer printed is in build/conformance/.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.http as stock
from rich.console import Console
from rich.table import Table
from tritonclient.utils import InferenceServerException

from examples.console import heading, make_console, step
from examples.serving import ServerError, ServerProcess
from tests.conformance.triton_repository import ROWS, write_simple
from tests.server.models import identity_model
from tests.tools import ROOT, TOOLS

BUILD = ROOT / "build" / "conformance"
PATIENCE = 120.0
CONCURRENCY = (1, 8)
WINDOWS = ("--measurement-interval", "200", "--max-trials", "12", "--stability-percentage", "999", "--concurrency-range", "1:8")
"""Windows of 0.2 s, three for each concurrency where the machine has nothing else to do: whether it works is asked, not how fast."""
FLAGS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--allow", "shared-memory")
THROUGHPUT = re.compile(r"^Concurrency: (\d+), throughput: ([\d.]+) infer/sec", re.MULTILINE)
SERVE = (sys.executable, "-m", "tidegate", "serve", *FLAGS, "--repository")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of perf_analyzer."""

    protocol: str
    how: str
    flags: tuple[str, ...]
    batch: int
    model: str = "identity"

    @property
    def name(self) -> str:
        return f"{self.model}-{self.protocol}-{self.how}-{self.batch}".replace(" ", "-")

    def command(self, address: str) -> list[str]:
        """The command line."""
        base = [str(TOOLS / "bin" / "perf_analyzer"), "-m", self.model, "-i", self.protocol, "-u", address, "-b", str(self.batch)]
        return [*base, *self.flags, *WINDOWS]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: rows a second by concurrency, and what went wrong ("" for nothing)."""

    rates: dict[int, float]
    fault: str
    seconds: float


SHARED = ("--shared-memory", "system")
WAYS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("http", "sync", ("--sync",)),
    ("http", "async", ("--async",)),
    ("http", "shared memory", ("--sync", *SHARED)),
    ("grpc", "sync", ("--sync",)),
    ("grpc", "async", ("--async",)),
    ("grpc", "streaming", ("--async", "--streaming")),
    ("grpc", "shared memory", ("--sync", *SHARED)),
)
RUNS = [Run(protocol, how, flags, batch) for protocol, how, flags in WAYS for batch in (1, 4)]
TRITON_RUNS = [Run(protocol, "sync", ("--sync",), 8, "simple") for protocol in ("http", "grpc")]


def main() -> int:
    """The command. Its exit status."""
    console = make_console()
    BUILD.mkdir(parents=True, exist_ok=True)
    outcomes: list[tuple[Run | str, Outcome]] = []
    try:
        with step(console, "fetch perf_analyzer"):
            subprocess.run([ROOT / ".ci" / "tools"], check=True)
        identity_model(BUILD / "models" / "identity" / "1" / "model.onnx")
        heading(console, "perf_analyzer")
        with served(BUILD / "models") as server:
            outcomes += [(run, measured(console, run, server)) for run in RUNS]
        heading(console, "A repository as Triton has it")
        with served(write_simple(BUILD / "triton-models")) as server:
            outcomes.append(("the answers of a stock client", answers(server)))
            outcomes += [(run, measured(console, run, server)) for run in TRITON_RUNS]
    except (OSError, subprocess.CalledProcessError, ServerError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    show(console, outcomes)
    return 1 if any(outcome.fault for _, outcome in outcomes) else 0


@contextmanager
def served(repository: Path) -> Iterator[ServerProcess]:
    """A server over `repository` for the block."""
    with ServerProcess([*SERVE, str(repository)], BUILD / f"{repository.name}.log") as server:
        yield server


def measured(console: Console, run: Run, server: ServerProcess) -> Outcome:
    """One run, and its output on disk."""
    started = time.monotonic()
    with step(console, f"{run.model}, {run.protocol}, {run.how}, batch {run.batch}"):
        try:
            done = subprocess.run(
                run.command(server.ready[run.protocol]),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            output, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            output, status = (late.stdout or b"").decode(errors="replace"), None
    (BUILD / f"{run.name}.log").write_text(output)
    return judged(output, status, time.monotonic() - started)


def judged(output: str, status: int | None, seconds: float) -> Outcome:
    """What an output says; `status` None where the run took too long."""
    rates = {int(concurrency): float(rate) for concurrency, rate in THROUGHPUT.findall(output)}
    missing = [number for number in range(CONCURRENCY[0], CONCURRENCY[1] + 1) if not rates.get(number)]
    fault = ""
    if status is None:
        fault = f"no end within {PATIENCE:g} s"
    elif status:
        fault = f"status {status}: {last_words(output)}"
    elif missing:
        fault = f"no throughput at concurrency {', '.join(map(str, missing))}"
    return Outcome(rates, fault, seconds)


def last_words(output: str) -> str:
    """The line of an output that says best why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"error|fail|unable", line, re.IGNORECASE)]
    return (told or lines or ["it printed nothing"])[0][:160]


def answers(server: ServerProcess) -> Outcome:
    """Whether a stock client gets what config.pbtxt promises: its names, its batch size, the right sums."""
    started = time.monotonic()
    a = np.arange(32, dtype=np.int32).reshape(2, 16)
    tensors = [stock.InferInput(name, [2, 16], "INT32").set_data_from_numpy(array) for name, array in (("INPUT0", a), ("INPUT1", a + 1))]
    fault = ""
    try:
        with stock.InferenceServerClient(server.ready["http"]) as client:
            size = client.get_model_config("simple")["max_batch_size"]
            result = client.infer("simple", tensors)
            right = np.array_equal(result.as_numpy("OUTPUT0"), a + a + 1) and np.array_equal(result.as_numpy("OUTPUT1"), a - a - 1)
        if size != ROWS or not right:
            fault = f"max_batch_size {size}, expected {ROWS}; the sums are {'right' if right else 'wrong'}"
    except InferenceServerException as error:
        fault = str(error)
    return Outcome({}, fault, time.monotonic() - started)


def show(console: Console, outcomes: Sequence[tuple[Run | str, Outcome]]) -> None:
    """One table."""
    table = Table("model", "over", "how", "batch", "rows/s at 1", "rows/s at 8", "outcome")
    for run, outcome in outcomes:
        said = f"[red]FAILED[/red] {outcome.fault}" if outcome.fault else "[green]ok[/green]"
        figures = [f"{outcome.rates[number]:,.0f}" if number in outcome.rates else "-" for number in CONCURRENCY]
        names = (run.model, run.protocol, run.how, str(run.batch)) if isinstance(run, Run) else ("simple", "http", run, "2")
        table.add_row(*names, *figures, said)
    console.print(table)
    failed = sum(bool(outcome.fault) for _, outcome in outcomes)
    console.print(f"{len(outcomes) - failed} of {len(outcomes)} as they should be; the outputs are in {BUILD.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
