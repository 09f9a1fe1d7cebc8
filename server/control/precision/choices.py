"""What holds over model.yaml: which precision operators chose for a model, to which one the server stepped meanwhile, and what is pinned
out. Plain data, by model's name; who changes it keeps it in the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.errors import Superseded
from server.precision.variants import most_exact_first
from server.repository.store import Entry

DEFAULT = "the default"  # how a switch to what model.yaml says is named in errors


@dataclass(frozen=True, slots=True)
class Pin:
    """A precision of a version that may not answer until `until` (Unix time); the `number`-th time in a row."""

    until: float
    number: int
    why: str


class Choices:
    """Of switches that are asked for while another one is under way only the last is made. `pins` are by version and precision."""

    def __init__(self) -> None:
        self._chosen: dict[str, str] = {}
        self._stepped: dict[str, str] = {}
        self._pins: dict[str, dict[tuple[str, str], Pin]] = {}
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
        """What an operator chose over model.yaml, None where that holds itself."""
        return self._chosen.get(name)

    def stepped(self, name: str) -> str | None:
        """What the server itself went to, None where it didn't."""
        return self._stepped.get(name)

    def choose(self, name: str, precision: str | None, *, stepped: bool = False) -> None:
        """Have a precision hold for the next loads, None for what else would. A choice ends what the server stepped to."""
        if not stepped:
            _put(self._chosen, name, precision)
            precision = None
        _put(self._stepped, name, precision)

    def held(self, name: str) -> tuple[str | None, str | None]:
        """What holds, to be put back."""
        return self._chosen.get(name), self._stepped.get(name)

    def put_back(self, name: str, held: tuple[str | None, str | None]) -> None:
        """Have what held before hold again."""
        _put(self._chosen, name, held[0])
        _put(self._stepped, name, held[1])

    def pins(self, name: str) -> Mapping[tuple[str, str], Pin]:
        """What may not answer."""
        return self._pins.get(name, {})

    def pin(self, name: str, version: str, precision: str, pin: Pin | None) -> None:
        """Pin out a precision of a version, or don't any more."""
        pins = self._pins.setdefault(name, {})
        if pin is None:
            pins.pop((version, precision), None)
        else:
            pins[version, precision] = pin

    def forget(self, name: str) -> None:
        """A model is unloaded: nothing is chosen for it. What is pinned out stays so."""
        self._chosen.pop(name, None)
        self._stepped.pop(name, None)
        self._asked.pop(name, None)

    def wanted(self, name: str, version: str, offered: Sequence[str]) -> str:
        """Which of the precisions that a version has is to answer: `offered` begins with the one that its model.yaml asks for. What is
        chosen but isn't there, or is pinned out, isn't served; where all are pinned out, the first is all the same."""
        barred = {precision for at, precision in self.pins(name) if at == version}
        held = (self._stepped.get(name, ""), self._chosen.get(name, ""), *offered[:1])
        first = [choice for choice in held if choice in offered]
        usable = [choice for choice in (*first, *most_exact_first(offered)) if choice not in barred]
        return next(iter((*usable, *offered)), "")

    def document(self, name: str) -> dict[str, Any] | None:
        """What must outlive a restart, None for nothing."""
        pins = [
            {"version": version, "precision": precision, "until": pin.until, "number": pin.number, "why": pin.why}
            for (version, precision), pin in self.pins(name).items()
        ]
        chosen = self._chosen.get(name)
        return {"active": chosen, "pinned": pins} if chosen is not None or pins else None

    def restore(self, name: str, document: Mapping[str, Any]) -> None:
        """As `document` said."""
        _put(self._chosen, name, document.get("active"))
        for said in document.get("pinned", ()):
            self.pin(name, said["version"], said["precision"], Pin(said["until"], said["number"], said["why"]))


def in_precision(entry: Entry, precision: str) -> Entry:
    """The entry as it's read where this precision is to serve; "" leaves it to its files."""
    if not precision:
        return entry
    return replace(entry, over={**entry.over, "precision": {**entry.over.get("precision", {}), "active": precision}})


def _put(values: dict[str, str], name: str, value: str | None) -> None:
    if value is None:
        values.pop(name, None)
    else:
        values[name] = value
