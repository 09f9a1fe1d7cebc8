"""The command: reads a repository's entry, reckons, and prints a table or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.backends.latency_table import BUILT_IN, read_table
from server.commands.plan.reckoning import Line, Published, Question, costs_of, ladder_of, plain, plan
from server.errors import ConfigError, TidegateError
from server.precision.ladder import Cost
from server.repository.configs.reading import read_model_config
from server.repository.declare.precision import Precision
from server.repository.manifest import MANIFEST_NAME, Manifest, processor, read_manifest
from server.repository.model_config import ModelConfig
from server.repository.store import Entry, Store
from server.units import duration
from server.validation import nearest

HERE = "here"


def plan_command(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    repository: Annotated[Path, typer.Option(help="The model repository.")] = Path("models"),
    objective: Annotated[str, typer.Option(help="Time within which answers should come, such as 50ms; default model.yaml's.")] = "",
    device: Annotated[str, typer.Option(help=f"{HERE} (as the exporter measured it), or a published device: {', '.join(BUILT_IN)}.")] = "",
    like: Annotated[str, typer.Option("--as", help="On a published device: the model of its table that stands for this one.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What each precision could serve in time, what it holds and how exact it is, so that a ladder is chosen knowingly. Nothing is run."""
    entry, version = _found(repository, model)
    config = read_model_config(entry.path, entry.over)
    path = entry.path / version / MANIFEST_NAME
    manifest = read_manifest(path) if path.exists() else None
    where = device or ("t4" if config.emulate is not None else HERE)
    costs, source = _published(config, manifest, where, like or model) if where != HERE else _measured(manifest, path)
    question = Question(_seconds(objective) or config.batching.latency_objective, config.batching.max_rows)
    lines = plan(costs, manifest, question)
    if json:
        said = {"model": model, "version": version, "device": source, **asdict(question), "ladder": ladder_of(lines)}
        typer.echo(orjson.dumps({**said, "precisions": [asdict(line) for line in lines]}, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(lines, question, source, config.precision)


def _found(repository: Path, model: str) -> tuple[Entry, str]:
    """The entry and its highest version. Raises TidegateError."""
    listing = Store(repository).find(model)
    if not listing.entries:
        names = [entry.name for entry in Store(repository).scan().entries]
        why = listing.problems[0].reason if listing.problems else f"no model {model!r}{nearest(model, names)}"
        raise TidegateError(f"--repository: {repository}: {why}")
    entry = listing.entries[0]
    return entry, max(entry.versions, key=int)


def _seconds(objective: str) -> float | None:
    if not objective:
        return None
    try:
        return duration(objective)
    except ValueError as error:
        raise TidegateError(f"--objective: {error}") from error


def _measured(manifest: Manifest | None, path: Path) -> tuple[dict[str, Cost | None], str]:
    """What the exporter measured on this processor. Raises TidegateError where there's no manifest."""
    if manifest is None:
        raise TidegateError(f"{path}: no manifest, so nobody measured this model; --device t4 --as MODEL takes a published one's times")
    return costs_of(manifest, processor()), f"{processor()}, as the exporter measured it"


def _published(config: ModelConfig, manifest: Manifest | None, device: str, model: str) -> tuple[dict[str, Cost | None], str]:
    """A table's times, of those precisions that the version has. Raises TidegateError."""
    if device not in BUILT_IN:
        raise TidegateError(f"--device: no published device {device!r}{nearest(device, (HERE, *BUILT_IN))}")
    table = read_table(BUILT_IN[device])
    name = config.emulate.model if config.emulate is not None else model
    names = config.emulate.have if config.emulate is not None else [each.precision for each in plain(manifest)] if manifest else ()
    costs: dict[str, Cost | None] = {}
    for precision in dict.fromkeys(names):
        try:
            costs[precision] = Published(table.curve(name, precision))
        except ConfigError:
            if name not in table.document.data["models"]:
                raise
            costs[precision] = None  # the device has no figures of this precision
    if not costs:
        raise TidegateError(f"{model!r} has no manifest and isn't emulated: nobody says which precisions it has")
    return costs, f"{table.device.name}, {name} as published; nothing was measured"


def _print(lines: Sequence[Line], question: Question, source: str, said: Precision) -> None:
    within = f" within {question.objective * 1e3:g} ms" if question.objective else ""
    table = Table(
        "precision", f"rows/s{within}", "rows a run", "run", "memory", "differs (≤ 95 %)", "cosine", "task", "left out", title=source
    )
    for line in lines:
        table.add_row(
            line.precision,
            "?" if line.rows_per_s is None else f"{line.rows_per_s:.0f}",
            "?" if line.rows is None else str(line.rows),
            "" if line.run_s is None else f"{line.run_s * 1e3:.3g} ms",
            "" if line.memory is None else f"{line.memory / 2**20:.0f} MiB{'' if line.peak else ' (file)'}",
            "" if line.disagreement is None else f"{line.disagreement:.2%} (≤ {line.disagreement_upper95 or 0:.2%})",
            "" if line.cosine_min is None else f"{line.cosine_min:.5f}",
            "" if line.task is None else f"{line.task[0]} {line.task[1]:.3f} (fp32 {line.task[2]:.3f})",
            line.left_out or "",
        )
    console, ladder = Console(), ladder_of(lines)
    console.print(table)
    rates = {line.precision: line.rows_per_s or 0.0 for line in lines}
    for upper, lower in pairwise(ladder):
        down, up = said.down_at * rates[upper], said.up_at * rates[upper]
        console.print(f"{upper} → {lower} over {down:.0f} rows/s, back under {up:.0f}")
    if len(ladder) > 1:
        console.print(f"precision: {{policy: ladder, ladder: [{', '.join(ladder)}]}}", markup=False)
    else:
        console.print("no ladder: there's no second precision that is known to be faster")
