"""Which precision operators chose for a model, over its model.yaml until it's cleared, and what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from server.errors import InvalidRequest, ModelDefect, NotFound, Superseded
from server.repository.store import Entry
from server.router.table import ServedVersion, ServingTable
from server.state.base import Event
from server.validation import nearest

DEFAULT = "the default"  # how a switch to what model.yaml says is named in errors


@dataclass(frozen=True, slots=True)
class PrecisionRow:
    """A version of a model and its precisions: `active` answers, `available` are what its manifest has for this device."""

    version: str
    active: str
    available: tuple[str, ...]


class Precisions:
    """By model's name. Of switches that are asked for while another one is under way only the last is made."""

    def __init__(self, table: ServingTable) -> None:
        self._table = table
        self._chosen: dict[str, str] = {}
        self._stepped: dict[str, str] = {}
        self._asked: dict[str, int] = {}

    def ask(self, name: str) -> int:
        """A turn for a switch of this model, to be shown to `check_newest` when its time has come."""
        self._asked[name] = turn = self._asked.get(name, 0) + 1
        return turn

    def check_newest(self, name: str, turn: int, precision: str | None) -> None:
        """Raises Superseded where somebody asked for another switch since."""
        if self._asked.get(name) != turn:
            raise Superseded(f"model '{name}': another switch was asked for before this one to {precision or DEFAULT} began")

    def chosen(self, name: str) -> str | None:
        """What holds over model.yaml, None where that holds itself."""
        return self._chosen.get(name)

    def stepped(self, name: str) -> str | None:
        """What was stepped to without an operator, while no choice of his holds."""
        return self._stepped.get(name)

    def held(self, name: str) -> tuple[str | None, str | None]:
        """What was chosen and what was stepped to, for `hold` to bring back."""
        return self._chosen.get(name), self._stepped.get(name)

    def hold(self, name: str, chosen: str | None, stepped: str | None) -> None:
        """Have them hold for the next loads, the operator's choice before the step; None for none."""
        for held, precision in ((self._chosen, chosen), (self._stepped, stepped)):
            if precision is None:
                held.pop(name, None)
            else:
                held[name] = precision

    def forget(self, name: str) -> None:
        """A model is unloaded."""
        self.hold(name, None, None)
        self._asked.pop(name, None)

    def over(self, entry: Entry) -> Entry:
        """The entry with what was chosen laid over it."""
        chosen = self._chosen.get(entry.name) or self._stepped.get(entry.name)
        if chosen is None:
            return entry
        return replace(entry, over={**entry.over, "precision": {**entry.over.get("precision", {}), "active": chosen}})

    def rows(self, name: str) -> list[PrecisionRow]:
        """The versions of a model that serve, and their precisions. Raises NotFound where none does."""
        rows = [_row_of(served) for served in self._table.versions(name) if served.serving is not None]
        if not rows:
            raise NotFound(f"no version of a model '{name[:255]}' serves")
        return rows

    def checked(self, name: str, precision: str | None) -> list[PrecisionRow]:
        """As `rows`. Raises InvalidRequest for a precision that one of them doesn't have; None is model.yaml's."""
        rows = self.rows(name)
        for row in rows:
            if precision is not None and precision not in row.available:
                raise InvalidRequest(
                    f"model '{name}' version {row.version} has no precision {precision[:32]!r}, but {', '.join(row.available)}"
                    f"{nearest(precision, row.available)}; `tidegate export --precisions` makes others"
                )
        return rows


def not_switched(name: str, rows: Sequence[PrecisionRow], precision: str | None, faults: Mapping[str, str]) -> ModelDefect:
    """Why a model can't be served in a precision: version → reason."""
    told = "; ".join(f"version {version}: {reason}" for version, reason in faults.items())
    return ModelDefect(f"model '{name}' still serves in {rows[0].active}: it can't in {precision or DEFAULT}: {told}")


def switched(name: str, before: Sequence[PrecisionRow], now: Sequence[str], asked: tuple[str, str]) -> Event:
    """The event of a switch that was made; `asked` are who and why."""
    who, why = asked
    was = ", ".join(row.active for row in before)
    return Event(0.0, who, "precision", name, was, ", ".join(now), why)


def _row_of(served: ServedVersion) -> PrecisionRow:
    assert served.serving is not None
    active = served.serving.key.precision
    return PrecisionRow(served.version, active, tuple(served.expected) or (active,))
