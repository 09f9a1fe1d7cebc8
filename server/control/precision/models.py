"""What stepping knows of one model: its ladder, what it's asked for, what failed, what was done; and all of it for people."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import isfinite, nan
from typing import Any
from zoneinfo import ZoneInfo

from server.control.precision.loads import Asked
from server.control.precision.rungs import Costed
from server.precision.ladder import Decision, Ladder, Policy, Sight, Skip, capacity
from server.repository.model_config import ModelConfig

FIRST_WAIT, LONGEST_WAIT = 30.0, 1800.0  # seconds after a step that failed
STEP_SECONDS = 2.0  # that a switch is taken to need before one was seen


@dataclass(frozen=True, slots=True)
class Failure:
    """A precision that couldn't be stepped to: barred until then, each time for longer."""

    until: float
    wait: float
    why: str


@dataclass(slots=True, eq=False)
class Model:
    """`costed` and `sight` are what the ladder was last asked with, `decision` what it said. `steps` counts by (precision, reason)."""

    config: ModelConfig
    ladder: Ladder
    asked: Asked = field(default_factory=Asked)
    failures: dict[str, Failure] = field(default_factory=dict)
    step_seconds: float = STEP_SECONDS
    task: asyncio.Task[None] | None = None
    costed: list[Costed] = field(default_factory=list)
    sight: Sight = field(default_factory=lambda: Sight(0.0, 0.0))
    decision: Decision | None = None
    steps: dict[tuple[str, str], int] = field(default_factory=dict)

    def failed(self, precision: str, now: float, why: str) -> Failure:
        """A step failed; for how long it isn't tried."""
        before = self.failures.get(precision)
        wait = FIRST_WAIT if before is None else min(LONGEST_WAIT, 2 * before.wait)
        found = self.failures[precision] = Failure(now + wait, wait, why)
        return found

    def barred(self, costed: Costed, now: float) -> Costed:
        """A rung, barred where a step to it failed lately. One that failed before that may be tried again, unless it's what answers."""
        rung, failure = costed.rung, self.failures.get(costed.rung.precision)
        if rung.precision == self.ladder.active:
            return costed
        lately = Skip.FAILED if failure is not None and now < failure.until else None
        return replace(costed, rung=replace(rung, barred=lately if rung.barred in (None, Skip.FAILED) else rung.barred))

    def count(self, key: tuple[str, str]) -> float:
        """Steps so far, for the scraping thread."""
        return float(self.steps.get(key, 0))

    def utilization(self, precision: str) -> float:
        """As foreseen at the last look, for the scraping thread."""
        decision = self.decision
        return dict(decision.figures).get(precision, nan) if decision is not None else nan

    def why(self, decision: Decision) -> str:
        """A step's reason with its figures, for the log of events."""
        parts = [str(decision.reason)]
        if decision.figures:
            ahead = f", {self.sight.ahead:.0f} foreseen" if self.sight.ahead > self.sight.rate * 1.01 else ""
            used = ", ".join(f"{name} {use:.2f}" for name, use in decision.figures)
            parts.append(f"{self.sight.rate:.0f} rows/s asked for{ahead}; utilization {used}")
        if decision.skipped:
            parts.append("left out " + ", ".join(f"{name} ({skip})" for name, skip in decision.skipped))
        return "; ".join(parts)

    def told(self, chosen: str | None, now: float) -> dict[str, Any]:
        """The state and what would be done next, as JSON."""
        settings, decision, sight = self.ladder.settings, self.decision, self.sight
        down, up = self.ladder.cooling(now)
        said: dict[str, Any] = {
            "policy": str(settings.policy),
            "ladder": list(settings.ladder),
            "objective_s": settings.objective,
            "asked_rows_per_s": round(sight.rate, 3),
            "foreseen_rows_per_s": round(sight.demand, 3),
            "batch_rows": list(sight.rows),
            "frozen": sight.frozen,
            "down_in_s": round(down, 3),
            "up_in_s": round(up, 3),
            "calm_in_s": self.ladder.calm_in(now),
            "rungs": list(self._rungs(dict(decision.skipped) if decision is not None else {}, now)),
            "steps": [{"precision": to, "reason": reason, "count": count} for (to, reason), count in self.steps.items()],
        }
        if settings.policy is Policy.SCHEDULE:
            precision = self.config.precision
            said["schedule"] = [f"{turn.start // 3600:02}:{turn.start // 60 % 60:02} {turn.precision}" for turn in precision.schedule]
            said["time_zone"] = precision.time_zone
        if decision is not None:
            acts = chosen is None and decision.precision != self.ladder.active
            said["next"] = {"precision": decision.precision, "reason": str(decision.reason), "acts": acts}
        return said

    def _rungs(self, skipped: dict[str, Skip], now: float) -> Iterator[dict[str, Any]]:
        settings = self.ladder.settings
        for costed in self.costed:
            rung = costed.rung
            most = capacity(rung.cost, settings.objective, settings.max_rows) if rung.cost is not None else None
            use = self.sight.demand / most if most else None
            left_out = rung.barred or skipped.get(rung.precision)
            said: dict[str, Any] = {
                "precision": rung.precision,
                "rows_per_s": round(most, 3) if most is not None else None,
                "utilization": round(use, 4) if use is not None and isfinite(use) else None,
                "cost": str(costed.known),
                "left_out": str(left_out) if left_out is not None else None,
            }
            failure = self.failures.get(rung.precision)
            if failure is not None:
                said["failed"] = {"why": failure.why, "again_in_s": round(max(0.0, failure.until - now), 3)}
            yield said


def second_of_day(wall: float, zone: str) -> float:
    """The second of the day at a Unix time, by the clocks of a time zone."""
    there = datetime.fromtimestamp(wall, UTC if zone == "UTC" else ZoneInfo(zone))
    return there.hour * 3600.0 + there.minute * 60 + there.second
