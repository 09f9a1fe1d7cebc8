"""Six trained models in every level and precision, and one of more than 2 GiB, exported and proved: `make parity-matrix`. A cell is what
the manifest says of it.

A model is exported at a level in all its precisions at once; where that fails, in each alone, so that what fails is one cell with its
reason. "nothing to save" is no failure: `int8wo` is for large linear layers and embeddings. What was made is kept under
build/bench/parity-matrix, one file for a model at a level, and isn't made again by the next run: a run that was stopped goes on where it
was, and cells that failed are tried again. `--fresh` makes all anew. Names of models make those alone (`python -m
benchmarks.parity_matrix digits`). Exit status 0 when every cell could be made.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.command import run
from benchmarks.export_models import WORK, digits_flags, example, export, minilm_flags, photo_flags, weights
from benchmarks.harness import BUILD, BenchError, Report
from examples.console import step
from server.repository.manifest import Variant

LEVELS = (0, 1, 2, 3, 4)
PRECISIONS = ("fp32", "fp16", "int8", "int8wo")
LARGE = "large"
"""Its weights don't fit one file. It's big, not interesting: one level, and two precisions."""
MODELS = (LARGE, "digits", "minilm", "mobilenet_v2", "efficientnet_lite0", "crepe_tiny", "voice_encoder")
DONE = BUILD / "parity-matrix"
NONE = "nothing to save"
TABLE = BUILD / "parity-matrix.md"
COLUMNS = ("model", "asked", "kept", "precision", "MB", "nodes", "ms at 1/8/32 rows", "peak MB", "differs by", "mean cosine", "made")


@dataclass(frozen=True, slots=True)
class Cell:
    """A precision of a model at a level: its figures, or why there are none. `seconds` is what its export took, with those beside it."""

    model: str
    level: int
    precision: str
    seconds: float
    kept: int = 0
    size: int = 0
    nodes: int = 0
    latency: tuple[float, ...] = ()
    peak: int = 0
    max_abs: float = 0.0
    cosine: float = 0.0
    method: str = ""
    failure: str = ""

    def row(self) -> tuple[str, ...]:
        """The cell as the table has it."""
        head = (self.model, str(self.level))
        if self.failure:
            why = NONE if NONE in self.failure else f"failed: {self.failure}"
            return (*head, "-", self.precision, "-", "-", "-", "-", "-", "-", why)
        times = " ".join(f"{1e3 * seconds:.3g}" for seconds in self.latency)
        size, peak = f"{self.size / 1e6:.2f}", f"{self.peak / 1e6:.0f}"
        return (
            *head,
            str(self.kept),
            self.precision,
            size,
            str(self.nodes),
            times,
            peak,
            f"{self.max_abs:.1e}",
            f"{self.cosine:.5f}",
            self.method,
        )


def measure(report: Report, console: Console) -> None:
    """Make the cells that are missing, fill the report's details, and show all that were asked for as a table."""
    asked = [name for name in sys.argv[1:] if name != "--fresh"] or list(MODELS)
    if unknown := set(asked) - set(MODELS):
        raise BenchError(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if "--fresh" in sys.argv[1:]:
        shutil.rmtree(DONE, ignore_errors=True)
    folder = weights(console)
    flags = {
        "digits": digits_flags(),
        "minilm": minilm_flags(folder),
        "efficientnet_lite0": photo_flags(),
        LARGE: ("--tolerate", "int8wo:rows=0"),
    }
    cells = [cell for name in asked for level in _levels(name) for cell in _made(console, name, level, flags.get(name, ()))]
    report.details |= {f"{cell.model} level {cell.level} {cell.precision}": asdict(cell) for cell in cells}
    print(_table(cells))
    spent = {name: sum({cell.level: cell.seconds for cell in cells if cell.model == name}.values()) for name in asked}
    print("seconds of exporting: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent.items()))
    if failed := [cell for cell in cells if cell.failure and NONE not in cell.failure]:
        report.write()
        some = "; ".join(f"{cell.model} level {cell.level} {cell.precision}: {cell.failure}" for cell in failed[:3])
        raise BenchError(f"{len(failed)} of {len(cells)} cells failed: {some}{'; …' if len(failed) > 3 else ''}")


def _table(cells: Sequence[Cell]) -> str:
    """In Markdown, for the documentation; it's written to TABLE too."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(cell.row() for cell in cells)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    TABLE.write_text(text + "\n")
    return text


def _made(console: Console, name: str, level: int, flags: Sequence[str]) -> list[Cell]:
    """The cells of a model at a level, those that were made before as they are on disk."""
    path = DONE / f"{name}-{level}.json"
    before = _read(path)
    wanted = ("fp32", "int8wo") if name == LARGE else PRECISIONS
    missing = [precision for precision in wanted if precision not in before]
    if missing:
        with step(console, f"{name} at level {level}: {', '.join(missing)}"):
            found = {**before, **{cell.precision: cell for cell in _export(name, level, missing, flags)}}
            _write(path, [found[precision] for precision in wanted])
        return [found[precision] for precision in wanted]
    return [before[precision] for precision in wanted]


def _levels(name: str) -> Sequence[int]:
    return (2,) if name == LARGE else LEVELS


def _export(name: str, level: int, precisions: Sequence[str], flags: Sequence[str]) -> Iterator[Cell]:
    """All at once; where that fails, each alone."""
    started = time.monotonic()
    entry = f"{name}_{level}"
    kept = () if name == LARGE else ("--resume",)  # gigabytes would push all else out of the user's cache
    factory = "benchmarks/large_model.py:build" if name == LARGE else example(name)
    try:
        made = export(entry, factory, "--optimization-level", str(level), "--precisions", ",".join(precisions), *kept, *flags)
    except BenchError as error:
        if len(precisions) == 1:
            why = str(error).removeprefix(f"the export of {entry} failed: ")
            yield Cell(name, level, precisions[0], time.monotonic() - started, failure=why)
            return
        for precision in precisions:
            yield from _export(name, level, [precision], flags)
        return
    finally:
        shutil.rmtree(WORK / "models" / entry, ignore_errors=True)
    seconds = time.monotonic() - started
    yield from (_cell(name, level, variant, seconds) for variant in made.manifest.variants)


def _cell(name: str, level: int, variant: Variant, seconds: float) -> Cell:
    times = variant.latency.seconds if variant.latency else {}
    return Cell(
        name,
        level,
        variant.precision,
        seconds,
        kept=variant.optimization_level,
        size=variant.bytes,
        nodes=list(variant.nodes.values())[-1],
        latency=tuple(times.values()),
        peak=variant.memory.peak if variant.memory else 0,
        max_abs=variant.parity.max_abs,
        cosine=variant.parity.cosine_mean or 0.0,
        method=f"{variant.method or ''}{f', {len(variant.kept_fp32)} nodes in FP32' if variant.kept_fp32 else ''}",
    )


def _read(path: Path) -> Mapping[str, Cell]:
    """The cells of a file that were made, by precision."""
    if not path.is_file():
        return {}
    cells = [Cell(**cell) for cell in json.loads(path.read_text())]
    return {cell.precision: cell for cell in cells if not cell.failure or NONE in cell.failure}


def _write(path: Path, cells: Sequence[Cell]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run("parity_matrix", measure))
