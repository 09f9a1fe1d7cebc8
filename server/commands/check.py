"""`tidegate serve --check`: how each model of the repository is understood, read as a start would read it. Nothing is opened or bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.backends.registry import backend_named
from server.config import Settings
from server.ensemble import PLATFORM
from server.errors import ModelDefect
from server.gate import Gate
from server.repository.configs.reading import config_path
from server.repository.declare.said import Loadable
from server.repository.loader import describe
from server.repository.onnx_files import Value, read_onnx
from server.repository.store import Entry, Listing, Store
from server.tensors import TensorSpec

FAULT, WARNING = "red", "yellow"


@dataclass(frozen=True, slots=True)
class Understood:
    """One version of a model. `source` is the file that configures it, `how` what it would be served as, `fault` why it wouldn't be."""

    model: str
    version: str
    source: str = ""
    how: str = ""
    warnings: tuple[str, ...] = ()
    fault: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}/{self.version}" if self.version else self.model


def understand(settings: Settings) -> list[Understood]:
    """Every version that a start would serve, by name. Raises ConfigError for what would stop the start itself."""
    Gate.from_settings(settings)
    listing = Store(settings.repository).scan()
    found = list(_missing(listing, settings))
    found += [_version(entry, version, listing, settings) for entry in listing.entries for version in entry.versions]
    return sorted(found, key=lambda one: (one.model, int(one.version or 0)))


def _missing(listing: Listing, settings: Settings) -> Iterator[Understood]:
    """What the repository can't offer, and what is to be loaded and isn't there."""
    yield from (Understood(problem.name, problem.version, fault=problem.reason) for problem in listing.problems)
    known = {"*", *(entry.name for entry in listing.entries), *(problem.name for problem in listing.problems)}
    for name in (*settings.load_model, *(settings.ready_when if isinstance(settings.ready_when, tuple) else ())):
        if name not in known:
            yield Understood(name, "", fault=f"no such model: expected the folder {settings.repository / name}")


def _version(entry: Entry, version: str, listing: Listing, settings: Settings) -> Understood:
    path = config_path(entry.path)
    source = path.name if path.exists() else "the model's file"
    try:
        loadable = describe(entry, version, settings)
        how = _ensemble(loadable, listing) if loadable.config.ensemble is not None else _how(loadable)
    except ModelDefect as error:
        return Understood(entry.name, version, source, warnings=entry.warnings, fault=str(error))
    return Understood(entry.name, version, source, how, entry.warnings)


def _ensemble(loadable: Loadable, listing: Listing) -> str:
    """Raises ModelDefect where a part isn't there; whether the parts fit together shows when they're loaded."""
    assert loadable.config.ensemble is not None
    offered = {(entry.name, version) for entry in listing.entries for version in (*entry.versions, "")}
    for number, step in enumerate(loadable.config.ensemble.steps, 1):
        if (step.model, step.version) not in offered:
            raise ModelDefect(f"step {number} (model {step.model!r}): the repository offers no such model or version")
    return f"{PLATFORM} of {', '.join(step.model for step in loadable.config.ensemble.steps)}"


def _how(loadable: Loadable) -> str:
    """Raises ModelDefect where its backend isn't there."""
    spec, config = loadable.spec, loadable.config
    backend_named(spec.backend)
    values = read_onnx(spec.path) if spec.path.suffix == ".onnx" else None
    inputs, outputs = (_tensors(known, read) for known, read in _pairs(loadable, values))
    lanes = f"{config.lanes.count or 'auto'} {config.lanes.kind} lanes on {spec.device}"
    parts = [f"{spec.backend} {spec.precision}", f"{inputs} → {outputs}", f"up to {config.batching.max_rows} rows a run", lanes]
    return "; ".join([*parts, *filter(None, (loadable.note,))])


def _pairs(loadable: Loadable, read: object) -> Iterator[tuple[tuple[TensorSpec, ...], list[Value]]]:
    for side in ("inputs", "outputs"):
        yield getattr(loadable.spec, side), getattr(read, side, [])


def _tensors(known: tuple[TensorSpec, ...], read: list[Value]) -> str:
    """What is said of tensors, and the file's own words for the others."""
    said = {spec.name: f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in known}
    said |= {value.name: f"{value.name} {value.datatype} {list(value.shape or ())}" for value in read if value.name not in said}
    return ", ".join(said.values()) or "tensors as the backend finds them"


def show(found: list[Understood], console: Console) -> None:
    """A table on a terminal, plain lines elsewhere, and the verdict below."""
    if console.is_terminal:
        console.print(_table(found))
    else:
        for line in _lines(found):
            console.print(Text(line), soft_wrap=True)
    console.print(Text(verdict(found), "bold"), soft_wrap=True)


def _table(found: list[Understood]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "from", "understood as"):
        table.add_column(heading, no_wrap=heading != "understood as", overflow="fold")
    for one in found:
        told = Text(one.fault, FAULT) if one.fault else Text(one.how)
        for warning in one.warnings:
            told.append(f"\n→ {warning}", WARNING)
        table.add_row(Text(one.name), Text(one.source), told)
    return table


def _lines(found: list[Understood]) -> Iterator[str]:
    for one in found:
        yield f"{one.name}: {'fault: ' + one.fault if one.fault else f'from {one.source}: {one.how}'}"
        yield from (f"{one.name}: warning: {warning}" for warning in one.warnings)


def verdict(found: list[Understood]) -> str:
    """How many would be served."""
    faults = sum(bool(one.fault) for one in found)
    if not found:
        return "The repository holds no model."
    if faults:
        return f"{faults} of {len(found)} can't be served."
    return f"{len(found)} can be served." if len(found) > 1 else "It can be served."
