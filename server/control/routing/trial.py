"""A canary's roll-out or an A/B test as it's written down: what is compared with what, by which rules, how far it is. Values; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.errors import ConfigError
from server.repository.declare.routing import Sticky, read_sticky
from server.router.canary import Plan
from server.router.experiment import Guard
from server.state.base import Document

SCHEMA = 1


class Kind(StrEnum):
    """What it's for."""

    CANARY = "canary"  # a new version is rolled out, step by step
    EXPERIMENT = "experiment"  # two versions are compared at one share, and nothing is done about it


class State(StrEnum):
    """Whether it goes on, and how it ended."""

    RUNNING = "running"
    PAUSED = "paused"  # its step is held; a roll-back still happens
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"  # by an operator, or because it can't go on
    STOPPED = "stopped"  # an A/B test is over


GOING = frozenset((State.RUNNING, State.PAUSED))


@dataclass(frozen=True, slots=True)
class Trial:
    """`canary` is the new version, or an A/B test's second arm. `objective` in seconds, 0 where latency isn't judged. `step` counts from 0,
    `since` when it began (seconds of the clock of the evidence). `said` is the last verdict, as it's shown."""

    id: str
    kind: Kind
    plan: Plan
    baseline: str
    canary: str
    objective: float = 0.0
    sticky: Sticky | None = None
    who: str = ""
    began: float = 0.0
    state: State = State.RUNNING
    step: int = 0
    since: float = 0.0
    ended: float = 0.0
    why: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.plan.model

    @property
    def going(self) -> bool:
        """Whether it has its model's requests."""
        return self.state in GOING

    @property
    def share(self) -> float:
        """The canary's, in percent, while it goes on."""
        return self.plan.steps[self.step]

    @property
    def weights(self) -> dict[str, float]:
        """The shares of both, in percent, while it goes on."""
        return {self.baseline: 100.0 - self.share, self.canary: self.share}


def as_document(trial: Trial) -> Document:
    """As it's kept in the state."""
    plan = trial.plan
    return {
        "schema": SCHEMA,
        "id": trial.id,
        "kind": trial.kind.value,
        "baseline": trial.baseline,
        "canary": trial.canary,
        "guards": [[guard.metric, guard.margin] for guard in plan.guards],
        "steps": list(plan.steps),
        "min_samples": plan.min_samples,
        "min_seconds": plan.min_seconds,
        "alpha": plan.alpha,
        "objective": trial.objective,
        "sticky": None if trial.sticky is None else str(trial.sticky),
        "who": trial.who,
        "began": trial.began,
        "state": trial.state.value,
        "step": trial.step,
        "since": trial.since,
        "ended": trial.ended,
        "why": trial.why,
        "said": dict(trial.said),
    }


def trial_of(model: str, document: Document) -> Trial:
    """What a document says. Raises ValueError for one that this server didn't write, or wrote otherwise."""
    if document.get("schema") != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, got {str(document.get('schema'))[:20]!r}")
    try:
        trial = _read(model, document)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not 0 <= trial.step < len(trial.plan.steps) or trial.baseline == trial.canary:
        raise ValueError(f"step {trial.step} of {len(trial.plan.steps)}, {trial.canary!r} over {trial.baseline!r}")
    return trial


def _read(model: str, document: Document) -> Trial:
    guards = tuple(Guard(str(metric), float(margin)) for metric, margin in document["guards"])
    steps = tuple(float(step) for step in document["steps"])
    least = int(document["min_samples"]), float(document["min_seconds"])
    return Trial(
        str(document["id"]),
        Kind(document["kind"]),
        Plan(model, guards, steps, *least, float(document["alpha"])),
        str(document["baseline"]),
        str(document["canary"]),
        float(document["objective"]),
        None if document["sticky"] is None else read_sticky(document["sticky"]),
        str(document["who"]),
        float(document["began"]),
        State(document["state"]),
        int(document["step"]),
        float(document["since"]),
        float(document["ended"]),
        str(document["why"]),
        dict(document["said"]),
    )
