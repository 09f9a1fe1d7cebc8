"""Proves an entry again where it lies: its files are the ones that were written, they open here, and they answer as they did.

The reference is the rows that the exporter left with their answers; without them it's the FP32 variant, on rows made from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from exporters.commands.entry import Entry
from exporters.inspect import cosine, milliseconds
from exporters.parity import kept, measure, report
from exporters.plan import GATES, ExportError, Gate
from exporters.sources.pytorch import Sample
from server.backends.base import Backend
from server.backends.registry import backend_named
from server.errors import ModelDefect
from server.numerics import Distance
from server.repository.manifest import Variant, file_sha256
from server.tensors import Tensor, TensorSpec

MADE_ROWS, MADE_LENGTH = (1, 5), 16
REFERENCE = "fp32"


@dataclass(slots=True)
class Verified:
    """A variant as it was found here. `faults` say what isn't as the manifest has it; none is good."""

    variant: Variant
    faults: list[str] = field(default_factory=list)
    distance: Distance | None = None
    rows: int = 0
    seconds: dict[int, float] = field(default_factory=dict)


def verify(entry: Entry) -> list[Verified]:
    """Every variant, in the manifest's order."""
    found = [Verified(variant) for variant in entry.manifest.variants]
    with ExitStack() as stack:
        opened = [_open(entry, one, stack) for one in found]
        samples = _samples(entry, found, opened)
        for one, backend in zip(found, opened, strict=True):
            if backend is not None and samples:
                _prove(one, backend, samples)
        _time(found, opened, samples, entry.manifest.unbatched is None)
    return found


def verify_table(found: Sequence[Verified]) -> Table:
    """One row a variant: what was measured here, beside the manifest's figures."""
    rows = sorted({count for one in found for count in one.seconds})
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in (
        "variant",
        "rows",
        "differs\nby",
        "mean\ncosine",
        f"ms here at\n{'/'.join(map(str, rows))} rows",
        "as\nexported",
        "verdict",
    ):
        table.add_column(title, overflow="fold")
    for one in found:
        before = one.variant.latency.seconds if one.variant.latency else {}
        part = one.distance
        table.add_row(
            one.variant.precision,
            str(one.rows or "-"),
            f"{part.max_abs:.1e}" if part else "-",
            cosine(part.cosine_mean) if part else "-",
            _times(one.seconds, rows),
            _times(before, rows),
            "; ".join(one.faults) or ("holds" if part else "opens; nothing to prove it by"),
        )
    return table


def _times(seconds: dict[int, float], rows: list[int]) -> str:
    return " ".join(milliseconds(seconds[count]) if count in seconds else "-" for count in rows) or "-"


def _open(entry: Entry, one: Verified, stack: ExitStack) -> Backend | None:
    """The variant's backend; None, and a fault, where its file isn't the one that was written or doesn't open."""
    file, variant = entry.file(one.variant), one.variant
    one.faults += _changed(file, variant.size, variant.sha256)
    if data := variant.data:
        one.faults += _changed(entry.folder / data.file, data.size, data.sha256)
    if not one.faults:
        try:
            backend = backend_named(variant.backend).open(entry.spec(variant, measure.threads()))
            stack.callback(backend.close)
            return backend
        except ModelDefect as error:
            one.faults.append(f"doesn't open here: {str(error).removeprefix(f'{file}: ')}")
    return None


def _changed(file: Path, size: int, sha256: str) -> Iterator[str]:
    """How a file isn't the one that was written."""
    if not file.is_file():
        yield f"{file.name} isn't there"
    elif (found := file.stat().st_size) != size:
        yield f"{file.name} is {found:,} bytes, not {size:,}"
    elif file_sha256(file) != sha256:
        yield f"{file.name} isn't the file that was written: its SHA-256 differs"


def _samples(entry: Entry, found: Sequence[Verified], opened: Sequence[Backend | None]) -> list[Sample]:
    """The rows that were left, with their answers; else made ones with FP32's; else none."""
    rows = reference_rows(entry)
    if rows is not None:
        return rows
    base = next((backend for one, backend in zip(found, opened, strict=True) if one.variant.precision == REFERENCE), None)
    return list(made_samples(base)) if base is not None and len(found) > 1 else []


def reference_rows(entry: Entry) -> list[Sample] | None:
    """The rows of the proof that were left with an entry, None where none were. Raises ExportError for a file that isn't that."""
    reference = entry.manifest.reference
    if reference is None:
        return None
    path = entry.folder / reference.file
    if not path.is_file() or file_sha256(path) != reference.sha256:
        raise ExportError(f"{path}: isn't the file that was written, so there is nothing to prove the variants by")
    return list(kept.kept(path))


def made_samples(base: Backend) -> Iterator[Sample]:
    """Rows made from the shapes, with a backend's own answers."""
    batched = all(spec.batch_axis == 0 for spec in base.inputs)
    rng = np.random.default_rng(0)
    for rows in MADE_ROWS if batched else (1,):
        inputs = {spec.name: _values(spec, rows, rng) for spec in base.inputs}
        answers = base.run(inputs, rows)
        yield Sample(rows, inputs, {name: np.array(array) for name, array in answers.items()})


def _values(spec: TensorSpec, rows: int, rng: np.random.Generator) -> Tensor:
    """Normal numbers for floats, 0 and 1 for the others, which are places in a table more often than amounts."""
    sizes = enumerate(spec.shape)
    shape = [size if size != -1 else rows if axis == spec.batch_axis else MADE_LENGTH for axis, size in sizes]
    kind = spec.dtype.numpy
    return (rng.normal(size=shape) if kind.kind == "f" else rng.integers(0, 2, shape)).astype(kind)


def _prove(one: Verified, backend: Backend, samples: Sequence[Sample]) -> None:
    try:
        distances = measure.distances(backend, samples)
    except ExportError as error:
        one.faults.append(str(error))
        return
    outputs = [entry.spec() for entry in one.variant.outputs]
    one.faults += report.failures(distances, outputs, gate_of(one.variant), "the reference")
    one.distance = max(distances.values(), key=lambda part: part.max_relative)
    one.rows = sum(sample.rows for sample in samples)


def gate_of(variant: Variant) -> Gate:
    """What it had to hold when it was made: the manifest's own tolerance, and the rest by its precision."""
    usual = GATES.get(variant.precision, GATES["int8"])
    cosine_then = variant.parity.cosine_mean
    floor = usual.cosine if cosine_then is None else min(usual.cosine, cosine_then - (1 - cosine_then))
    return Gate(relative=variant.parity.tolerance, cosine=floor, confident=usual.confident)


def _time(found: Sequence[Verified], opened: Sequence[Backend | None], samples: Sequence[Sample], batched: bool) -> None:
    timed = [(one, backend) for one, backend in zip(found, opened, strict=True) if backend is not None and one.distance is not None]
    if not timed:
        return
    runs = measure.latencies([backend for _, backend in timed], samples[0], batched)
    for (one, _), taken in zip(timed, runs, strict=True):
        one.seconds = {rows: median(seconds) for rows, seconds in taken.items()}
