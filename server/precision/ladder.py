"""When to change precision: down before the latency objective breaks, up when there's room again. Pure: no lane, no loop, no clock.

Rules: a rung's utilization is the arrival rate over the most rows/s that it can run within the objective. A threatened model goes to the
first rung of the ladder that stays under `down_at`, at once and not by way of rungs that wouldn't do; it comes back to the first that stays
under `up_at`, after a cool-down and a calm spell. Between both bounds nothing moves. A rung counts only with a proof, while it's neither
failed nor pinned out, and if it was measured faster at the batch sizes in use than what stands before it. So at a constant rate there's one
step at the most. The ladder decides; its owner acts, and says what came of it (`stepped`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

FASTER = 0.95  # of the time of the rung before it, at every batch size in use: less gain isn't worth an answer's exactness
GAIN = 1.05  # of the rows/s that a step down must bring
DAY = 86400


class Policy(StrEnum):
    """Who chooses the precision."""

    FIXED = "fixed"
    LADDER = "ladder"
    SCHEDULE = "schedule"


class Reason(StrEnum):
    """Why this precision."""

    THREATENED = "objective_threatened"
    ROOM = "room_again"
    WANTED = "as_configured"
    SCHEDULED = "scheduled"
    ASKED = "asked_for"
    BARRED = "active_barred"
    STEADY = "steady"
    NO_OBJECTIVE = "no_objective"
    FROZEN = "frozen_by_experiment"
    COOLING = "cooling_down"
    NOT_CALM = "room_not_for_long"
    NO_BETTER = "no_better_rung"


class Skip(StrEnum):
    """Why a precision isn't stepped to."""

    UNPROVEN = "unproven"
    PINNED_OUT = "pinned_out"
    FAILED = "failed"
    UNMEASURED = "unmeasured"
    SLOWER = "not_faster"
    ABSENT = "absent"


class Cost(Protocol):
    """What a run takes; the engine's cost model is one."""

    def mean(self, rows: int) -> float:
        """Seconds in the mean."""
        ...

    def estimate(self, rows: int) -> float:
        """Seconds within which nearly all runs end."""
        ...


@dataclass(frozen=True, slots=True)
class Rung:
    """A variant as the ladder sees it. `cost` is None where nothing was measured; `barred` is UNPROVEN, PINNED_OUT or FAILED."""

    precision: str
    cost: Cost | None = None
    barred: Skip | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator says. `ladder` begins with the most exact precision; `active` is what policy fixed holds; `schedule` is
    (second of the day, precision) in rising order, the last of the day holding until the first; `objective` is in seconds.

    Raises ValueError where that makes no sense.
    """

    policy: Policy = Policy.FIXED
    ladder: tuple[str, ...] = ()
    active: str = "fp32"
    schedule: tuple[tuple[int, str], ...] = ()
    objective: float | None = None
    max_rows: int = 64
    down_at: float = 0.85
    up_at: float = 0.7
    down_cool: float = 2.0
    up_cool: float = 30.0
    calm: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.up_at < self.down_at:
            raise ValueError(f"expected 0 < up_at < down_at, or the ladder would swing, got up_at {self.up_at} and down_at {self.down_at}")
        if len(set(self.ladder)) != len(self.ladder):
            raise ValueError(f"ladder: each precision once, got {', '.join(self.ladder)}")
        if self.policy is Policy.LADDER and not self.ladder:
            raise ValueError("policy ladder: name the precisions, the most exact one first: ladder: [fp32, fp16]")
        starts = [start for start, _ in self.schedule]
        if self.policy is Policy.SCHEDULE and not starts:
            raise ValueError("policy schedule: name at least one time of the day and its precision")
        if starts != sorted(set(starts)) or any(not 0 <= start < DAY for start in starts):
            raise ValueError(f"schedule: seconds of the day, 0 to {DAY - 1}, in rising order, got {starts}")

    def wanted(self, second: float) -> str:
        """What fixed and schedule ask for at a second of the day."""
        if self.policy is not Policy.SCHEDULE:
            return self.active
        begun = [precision for start, precision in self.schedule if start <= second % DAY]
        return begun[-1] if begun else self.schedule[-1][1]


@dataclass(frozen=True, slots=True)
class Sight:
    """What is so now. `rate` is rows/s that arrive, rejected ones included, and `ahead` the rate foreseen for when a switch would be done;
    `rows` are the batch sizes in use (empty: unknown); `frozen` while an experiment runs; `second` of the day is for the schedule."""

    now: float
    rate: float
    ahead: float = 0.0
    rows: tuple[int, ...] = ()
    frozen: bool = False
    second: float = 0.0

    @property
    def demand(self) -> float:
        return max(self.rate, self.ahead)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which precision should answer and why; `figures` is the utilization foreseen of each rung, `skipped` says what was left out."""

    precision: str
    reason: Reason
    figures: tuple[tuple[str, float], ...] = ()
    skipped: tuple[tuple[str, Skip], ...] = ()


class Ladder:
    """The ladder of one model; `active` is the precision that answers now."""

    def __init__(self, settings: Settings, active: str) -> None:
        self.settings = settings
        self.active = active
        self._stepped = -math.inf
        self._room_since: float | None = None

    def stepped(self, precision: str, now: float) -> None:
        """The owner has switched, whoever asked for it: the cool-down begins."""
        self.active = precision
        self._stepped = now
        self._room_since = None

    def decide(self, rungs: Sequence[Rung], sight: Sight) -> Decision:
        """What should answer now. `rungs` are the variants that exist; those that the ladder doesn't name with the most exact first."""
        by_name = {rung.precision: rung for rung in rungs}
        active = by_name.get(self.active)
        barred = active is None or active.barred in (Skip.PINNED_OUT, Skip.FAILED)
        if self.settings.policy is not Policy.LADDER:
            return self._held(by_name, sight, barred)
        chain, skipped = self._chain(by_name, sight, self.settings.ladder)
        uses = {rung.precision: self._use(rung, sight.demand) for rung in rungs}
        if barred:
            precision, reason = self._refuge(by_name, uses)
        elif sight.frozen:
            precision, reason = self.active, Reason.FROZEN
        elif self.settings.objective is None:
            precision, reason = self.active, Reason.NO_OBJECTIVE
        else:
            precision, reason = self._step(chain, uses, sight)
        return Decision(precision, reason, tuple(uses.items()), skipped)

    def neighbour(self, rungs: Sequence[Rung], sight: Sight, *, down: bool) -> Decision:
        """The next rung that may be stepped to in a direction, whatever the load; the active one where there's none, `skipped` says why."""
        order = self.settings.ladder or tuple(rung.precision for rung in rungs)
        chain, skipped = self._chain({rung.precision: rung for rung in rungs}, sight, order)
        names = [rung.precision for rung in chain]
        above = _before(self.active, order)
        found = [name for name in names if name not in above and name != self.active] if down else [n for n in names if n in above][::-1]
        return Decision(found[0], Reason.ASKED, skipped=skipped) if found else Decision(self.active, Reason.NO_BETTER, skipped=skipped)

    def cooling(self, now: float) -> tuple[float, float]:
        """Seconds until a step down, and one up, may follow the last one."""
        since = now - self._stepped
        return max(0.0, self.settings.down_cool - since), max(0.0, self.settings.up_cool - since)

    def calm_in(self, now: float) -> float | None:
        """Seconds for which there must still be room before a step up; None while there's none."""
        return None if self._room_since is None else max(0.0, self.settings.calm - (now - self._room_since))

    def _held(self, rungs: dict[str, Rung], sight: Sight, barred: bool) -> Decision:
        """Policies fixed and schedule: what is asked for unless it's barred, then what is more exact than it."""
        wanted = self.settings.wanted(sight.second)
        reason = Reason.SCHEDULED if self.settings.policy is Policy.SCHEDULE else Reason.WANTED
        if wanted == self.active and not barred:
            return Decision(wanted, Reason.STEADY)
        skip = Skip.ABSENT if wanted not in rungs else rungs[wanted].barred
        if skip is None:
            frozen = sight.frozen and not barred
            return Decision(self.active, Reason.FROZEN) if frozen else Decision(wanted, reason)
        precision, reason = self._refuge(rungs, {}) if barred else (self.active, Reason.NO_BETTER)
        return Decision(precision, reason, skipped=((wanted, skip),))

    def _chain(self, rungs: dict[str, Rung], sight: Sight, order: Sequence[str]) -> tuple[list[Rung], tuple[tuple[str, Skip], ...]]:
        """The rungs that may be stepped to, each faster than the one before it at the batch sizes in use; and the others, with why."""
        chain: list[Rung] = []
        skipped: list[tuple[str, Skip]] = []
        for name in order:
            rung = rungs.get(name)
            why = Skip.ABSENT if rung is None else rung.barred or _too_slow(rung, chain, sight.rows or (self.settings.max_rows,))
            if rung is not None and why is None:
                chain.append(rung)
            elif why is not None:
                skipped.append((name, why))
        return chain, tuple(skipped)

    def _use(self, rung: Rung, demand: float) -> float:
        most = capacity(rung.cost, self.settings.objective, self.settings.max_rows) if rung.cost else 0.0
        return demand / most if most else math.inf

    def _refuge(self, rungs: dict[str, Rung], uses: dict[str, float]) -> tuple[str, Reason]:
        """The active variant may not answer any more: the most exact one that can bear the load; where none can, the least loaded."""
        order = [*self.settings.ladder, *(name for name in rungs if name not in self.settings.ladder)]
        free = [name for name in order if name != self.active and name in rungs and rungs[name].barred is None]
        if not free:
            return self.active, Reason.NO_BETTER
        bearing = [name for name in free if uses.get(name, 0.0) <= self.settings.down_at]
        return bearing[0] if bearing else min(free, key=lambda name: uses[name]), Reason.BARRED

    def _step(self, chain: Sequence[Rung], uses: dict[str, float], sight: Sight) -> tuple[str, Reason]:
        if uses[self.active] > self.settings.down_at:
            self._room_since = None
            return self._relief(chain, uses, sight.now)
        above = _before(self.active, self.settings.ladder)
        room = [rung.precision for rung in chain if rung.precision in above and uses[rung.precision] <= self.settings.up_at]
        if not room:
            self._room_since = None
            return self.active, Reason.STEADY
        if self._room_since is None:
            self._room_since = sight.now
        if sight.now - self._stepped < self.settings.up_cool:
            return self.active, Reason.COOLING
        if sight.now - self._room_since < self.settings.calm:
            return self.active, Reason.NOT_CALM
        return room[0], Reason.ROOM

    def _relief(self, chain: Sequence[Rung], uses: dict[str, float], now: float) -> tuple[str, Reason]:
        """The objective is threatened: the first rung that keeps it, else the one that comes nearest."""
        names = [rung.precision for rung in chain]
        keeping = [name for name in names if uses[name] <= self.settings.down_at]
        best = keeping[0] if keeping else min(names, key=lambda name: uses[name], default=self.active)
        if uses[best] * GAIN >= uses[self.active]:
            return self.active, Reason.NO_BETTER
        return (self.active, Reason.COOLING) if now - self._stepped < self.settings.down_cool else (best, Reason.THREATENED)


def capacity(cost: Cost, objective: float | None, max_rows: int) -> float:
    """The most rows/s that can be run within `objective` seconds, even for a request that just missed a full run; 0 where not even one
    row alone can. Without an objective the most at all."""
    most = largest_within(cost, objective, max_rows)
    doublings = (1 << power for power in range(most.bit_length()))  # enough to see where a curve bends
    return max((b / cost.mean(b) for b in (*doublings, most)), default=0.0) if most else 0.0


def largest_within(cost: Cost, objective: float | None, max_rows: int) -> int:
    """The most rows in a run with which `objective` is kept even for a request that just missed a full one; 0 where one row alone can't."""
    if objective is None:
        return max_rows
    return bisect_right(range(1, max_rows + 1), objective, key=lambda b: cost.estimate(b) * (2 - 1 / b))


def _before(active: str, ladder: Sequence[str]) -> Sequence[str]:
    """The precisions that are more exact than the active one; all where it's not of the ladder."""
    return ladder[: ladder.index(active)] if active in ladder else ladder


def _too_slow(rung: Rung, chain: Sequence[Rung], rows: Sequence[int]) -> Skip | None:
    if rung.cost is None:
        return Skip.UNMEASURED
    before = chain[-1].cost if chain else None
    if before is None:
        return None
    return None if all(rung.cost.mean(size) < FASTER * before.mean(size) for size in rows) else Skip.SLOWER
