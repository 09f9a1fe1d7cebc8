"""Which requests are traced: Triton's trace settings, for all models and with overrides for some. Pure but for chance.

A request that belongs to a sampled trace is traced, one whose trace isn't sampled isn't; of the others 1 in `trace_rate` is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import getrandbits, random
from typing import Any, TypeAlias

from server.errors import InvalidRequest, Unsupported

Setting: TypeAlias = str | list[str]

LEVELS = ("OFF", "TIMESTAMPS")
MAX_NUMBER = 2**31 - 1
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(slots=True)
class Rule:
    """What holds for a model. `left` is how many more requests are traced, -1 for any number; `file` where they're written too, a new
    file for each `frequency` of them (0: one file)."""

    on: bool
    rate: int
    left: int
    file: Path | None = None
    frequency: int = 0


@dataclass(frozen=True, slots=True)
class Traced:
    """A request that is traced: the trace it belongs to, and the span that it came from, "" where it begins one."""

    trace_id: str
    parent_id: str
    rule: Rule


class TraceSettings:
    """`name_file` makes a path of a name that a client gave, or raises. `sample` is the share that's traced at first, 0 for none."""

    def __init__(self, sample: float, name_file: Callable[[str], Path]) -> None:
        self._name_file = name_file
        self._defaults: dict[str, Setting] = {
            "trace_level": ["TIMESTAMPS" if sample else "OFF"],
            "trace_rate": str(max(1, round(1 / sample)) if sample else 1000),
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": "",
        }
        self._given: dict[str, dict[str, Setting]] = {"": {}}
        self._rules: dict[str, Rule] = {"": self._rule("")}
        self._look()

    def _look(self) -> None:
        self.active = any(rule.on for rule in self._rules.values())

    def read(self, model: str = "") -> dict[str, Setting]:
        """What holds for a model, or for all that have no settings of their own."""
        return {**self._defaults, **self._given[""], **self._given.get(model, {})}

    def change(self, wish: Mapping[str, Any], model: str = "") -> None:
        """Set what is named, clear what is null; names that aren't settings are passed over. Nothing changes where one value is wrong.
        Raises InvalidRequest, Unsupported, or what `name_file` raises."""
        given = dict(self._given.get(model, {}))
        for name in self._defaults.keys() & wish.keys():
            if wish[name] is None:
                given.pop(name, None)
            else:
                given[name] = self._checked(name, wish[name])
        self._given[model] = given
        if model and not given:
            del self._given[model]
        self._rules = {each: self._rule(each) for each in self._given}
        self._look()

    def _checked(self, name: str, value: Any) -> Setting:
        if name == "trace_level":
            return _levels(value)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if name == "trace_file":
            if not isinstance(value, str):
                raise InvalidRequest(f"trace_file: expected text, got {type(value).__name__}")
            if value:
                self._name_file(value)
            return value
        least = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}[name]
        text = str(value).strip()
        if not re.fullmatch(r"-?[0-9]{1,10}", text) or not least <= int(text) <= MAX_NUMBER:
            raise InvalidRequest(f"{name}: expected a number from {least} to {MAX_NUMBER}, got {text[:64]!r}")
        return str(int(text))

    def _rule(self, model: str) -> Rule:
        found = self.read(model)
        name = str(found["trace_file"])
        return Rule(
            on="TIMESTAMPS" in found["trace_level"],
            rate=int(str(found["trace_rate"])),
            left=int(str(found["trace_count"])),
            file=self._name_file(name) if name else None,
            frequency=int(str(found["log_frequency"])),
        )

    def choose(self, model: str, traceparent: str) -> Traced | None:
        """Whether a request is traced, and as part of what."""
        rule = self._rules.get(model) or self._rules[""]
        if not rule.on or not rule.left:
            return None
        parent = _PARENT.fullmatch(traceparent) if traceparent else None
        if parent is not None:
            trace_id, parent_id, sampled = parent[1], parent[2], int(parent[3], 16) & 1
        else:
            trace_id, parent_id, sampled = "", "", random() * rule.rate < 1.0
        if not sampled:
            return None
        if rule.left > 0:
            rule.left -= 1
        return Traced(trace_id or f"{getrandbits(128) or 1:032x}", parent_id, rule)


def _levels(value: Any) -> list[str]:
    levels = [value] if isinstance(value, str) else value
    if not isinstance(levels, list) or not levels:
        raise InvalidRequest(f"trace_level: expected a list of {', '.join(LEVELS)}, got {str(value)[:64]!r}")
    for level in levels:
        if level == "TENSORS":
            raise Unsupported(
                "trace_level: TENSORS isn't supported: requests' tensors are recorded with recording.tensors (docs/recording.md)"
            )
        if level not in LEVELS:
            raise InvalidRequest(f"trace_level: expected {' or '.join(LEVELS)}, got {str(level)[:64]!r}")
    return [str(level) for level in levels]
