"""`tidegate simulate`: replays recorded arrivals under simulated time and prints what other settings would have done."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from server.commands.simulation.choices import Choices, choices_from
from server.commands.simulation.replay import Device, FittedDevice, Outcome, Setting, TableDevice, highest_priority, replay
from server.commands.simulation.trace import Batch, Trace, read_trace
from server.engine.batcher import BatchPolicy
from server.engine.decide.least_squares import Sums
from server.errors import ConfigError

FEW_RUNS = 8
"""Recorded runs under which nothing is learned from them."""
TELL_EVERY = 5.0  # seconds between two lines of progress, where there's no terminal

app = typer.Typer(help="Replay recorded arrivals under other settings.", add_completion=False)


@app.command()
def simulate(
    trace: Annotated[Path, typer.Argument(help="A recording's folder or file, or the file of an incident.")],
    objective: Annotated[str | None, typer.Option(help="Latency objective such as 50ms, in place of the recorded deadlines.")] = None,
    on_late: Annotated[str | None, typer.Option(help="reject (default): the objective is a deadline; serve: an aim.")] = None,
    max_rows: Annotated[str | None, typer.Option(help="Most rows in a run; default 64.")] = None,
    max_wait: Annotated[str | None, typer.Option(help="Longest wait for a fuller run.")] = None,
    max_queue_rows: Annotated[str | None, typer.Option(help="Most rows that wait; default 1024.")] = None,
    lanes: Annotated[str | None, typer.Option(help="Lanes that run at the same time; default 1.")] = None,
    speed: Annotated[str | None, typer.Option(help="How much faster the arrivals come; default 1.")] = None,
    table: Annotated[str | None, typer.Option(help="Published run times: t4, or a .yaml file of that form; with --model.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of the table.")] = None,
    precision: Annotated[str | None, typer.Option(help="A precision of the table; default fp32.")] = None,
    costs: Annotated[Path | None, typer.Option(help="Learned run times: the answer of GET /v2/models/NAME/batcher.")] = None,
    only: Annotated[str | None, typer.Option(help="NAME or NAME/VERSION, where the trace has several models.")] = None,
    compare: Annotated[list[str] | None, typer.Option(help="Another setting, such as objective=20ms,lanes=2. Again for more.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Replay recorded arrivals and print what another objective, size, lane count or precision would have done.

    Run times are those of a published table, of a learned cost curve, or of the runs that an incident's file tells of.
    """
    said = {
        **{"objective": objective, "on_late": on_late, "max_rows": max_rows, "max_wait": max_wait, "max_queue_rows": max_queue_rows},
        **{"lanes": lanes, "speed": speed, "table": table, "model": model, "precision": precision},
    }
    base = choices_from({name: value for name, value in said.items() if value is not None}, "--{}")
    chosen = {"as given": base, **{text: base.changed(text) for text in compare or ()}}
    found = read_trace(trace, only)
    if found.cut_short:
        print(f"note: {found.cut_short}: the last line is cut short and left out", file=sys.stderr)  # noqa: T201 - the command's own stderr
    settings = [_setting(name, choices, found, costs) for name, choices in chosen.items()]
    with _progress(len(found.arrivals) * len(settings)) as advance:
        outcomes = [replay(found.arrivals, each, partial(advance, number)) for number, each in enumerate(settings)]
    if as_json:
        sys.stdout.write(as_text(found, outcomes))
    else:
        show(found, outcomes, Console())


def _setting(name: str, choices: Choices, trace: Trace, costs: Path | None) -> Setting:
    policy = BatchPolicy(
        max_rows=choices.max_rows,
        latency_objective=choices.objective,
        on_late=choices.on_late,
        max_wait=choices.max_wait,
        priorities=highest_priority(trace.arrivals),
        lanes=choices.lanes,
    )
    return Setting(name, policy, _device(choices, trace, costs), choices.max_queue_rows, choices.speed)


def _device(choices: Choices, trace: Trace, costs: Path | None) -> Callable[[], Device]:
    """Where run times come from: the table, the file of costs, or what the trace itself tells of runs."""
    if choices.table is not None or choices.model is not None:
        return partial(TableDevice, choices.curve())
    if costs is None and len(trace.batches) < FEW_RUNS:
        raise ConfigError(
            "nothing says how long a run takes (a recording has arrivals only, an incident's file also runs): "
            "give --table t4 --model NAME --precision P, or --costs FILE"
        )
    learned = fitted(trace.batches) if costs is None else read_costs(costs)
    return lambda: learned


def fitted(runs: Iterable[Batch]) -> FittedDevice:
    """The device that runs of these rows, lengths and seconds tell of, by relative error."""
    sums, lengths = Sums(), []
    for run in runs:
        sums.add(run.rows * run.length, run.length, run.seconds, 1.0)
        lengths.append(run.length)
    a, c1, c2 = sums.solve()
    return FittedDevice(a, c1, c2, int(median(lengths)))


def read_costs(path: Path) -> FittedDevice:
    """The curve in the answer of GET /v2/models/NAME/batcher, or in its `cost` part alone. Raises ConfigError."""
    try:
        body = orjson.loads(path.read_bytes())
        part = body.get("cost", body)
        length = int(part.get("length", 1))
        if (fit := part.get("fit")) is not None:
            found = FittedDevice(float(fit["a"]), float(fit["c1"]), float(fit["c2"]), length)
        else:
            found = fitted(Batch(int(rows), length, float(seconds)) for rows, seconds in part["points"].items())
    except OSError as error:
        raise ConfigError(f"--costs: {path}: can't be read: {error.strerror or error}") from error
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--costs: {path}: expected the JSON of GET /v2/models/NAME/batcher: {error!r}") from error
    if not (min(found.a, found.c1, found.c2) >= 0 and length >= 1 and found.seconds(1, length) > 0):
        raise ConfigError(f"--costs: {path}: its fit says that a run takes no time: nothing was measured of this model yet")
    return found


def as_text(trace: Trace, outcomes: Sequence[Outcome]) -> str:
    """The figures as JSON."""
    about = {"model": trace.model, "arrivals": len(trace.arrivals), "seconds": round(trace.seconds, 6)}
    return json.dumps({"trace": about, "settings": [outcome.figures() for outcome in outcomes]}, indent=2) + "\n"


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "in time": lambda f: f"{f['in_time_share']:.1%}",
    "goodput/s": lambda f: f"{f['goodput_per_s']:,.1f}",
    "p50 ms": lambda f: _number(f["p50_ms"]),
    "p99 ms": lambda f: _number(f["p99_ms"]),
    "late": lambda f: f"{f['late']:,}",
    "dropped": lambda f: f"{sum(f['dropped'].values()):,}",
    "mean rows": lambda f: f"{f['mean_rows']:.1f}",
    "busy": lambda f: f"{f['utilisation']:.0%}",
    "capacity rows/s": lambda f: f"{f['capacity_rows_per_s']:,.0f}",
}
"""What is shown of an outcome's figures."""


def show(trace: Trace, outcomes: Sequence[Outcome], console: Console) -> None:
    """The figures as a table, a setting a row."""
    rate = len(trace.arrivals) / trace.seconds if trace.seconds else 0.0
    console.print(
        f"{len(trace.arrivals):,} arrivals of {trace.model} in {trace.seconds:,.1f} s ({rate:,.1f}/s)", soft_wrap=True, markup=False
    )
    table = Table("setting", box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for outcome in outcomes:
        figures = outcome.figures()
        table.add_row(outcome.name, *(column(figures) for column in COLUMNS.values()))
    console.print(table)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere: `advance(setting, done)` moves it."""
    console = Console(stderr=True)
    each: dict[int, int] = {}
    told = monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("simulating", total=total)

        def advance(setting: int, done: int) -> None:
            nonlocal told
            each[setting] = done
            progress.update(task, completed=sum(each.values()))
            if not console.is_terminal and monotonic() - told > TELL_EVERY:
                told = monotonic()
                console.print(f"simulating: {sum(each.values()) / max(1, total):.0%}", soft_wrap=True)

        yield advance


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
