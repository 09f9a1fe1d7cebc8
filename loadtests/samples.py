"""What came of a run, request by request, and the figures made of it. Latency counts from when a request was due, not from when it was
sent: what a slow server or client keeps waiting isn't left out (coordinated omission; G. Tene, "How NOT to measure latency").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Outcome(IntEnum):
    """What became of a request."""

    ANSWERED = 0
    REFUSED = 1  # the server said 503: overload is an answer too
    FAILED = 2
    TIMED_OUT = 3
    UNSENT = 4  # the run was ended before


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What an answer told of its run (explain), in rows and seconds."""

    batch_rows: int
    queue: float
    compute: float


@dataclass(slots=True)
class Samples:
    """One entry a request. `due`, `sent` and `done` are seconds from the run's begin; `kind` is the place in the mix, `begin` where
    measuring begins. `client_cpu` is what the generator took of a core, `why` counts the reasons of failures."""

    kinds: tuple[str, ...]
    begin: float
    end: float
    due: Floats
    sent: Floats
    done: Floats
    outcome: NDArray[np.int8]
    kind: NDArray[np.int16]
    rows: NDArray[np.int32]
    runs: list[RunFacts] = field(default_factory=list)
    why: dict[str, int] = field(default_factory=dict)
    client_cpu: float = 0.0

    @property
    def measured(self) -> Flags:
        """Those that were due while it was measured."""
        return (self.due >= self.begin) & (self.due < self.end)


@dataclass(frozen=True, slots=True)
class Figures:
    """A run in numbers; times in seconds, rates a second. `good` is the share within the objective's time, None without one. `lag` is how
    late the generator itself sent, at the 99th percentile."""

    requests: int
    offered: float
    answered: float
    rows: float
    refused: float
    failed: float
    good: float | None
    mean: float
    quantiles: Mapping[str, float]
    most: float
    lag: float
    seconds: float


def figures(samples: Samples, within: float | None, of: Flags | None = None) -> Figures:
    """The figures of what was measured, or of a part of it."""
    chosen = samples.measured if of is None else samples.measured & of
    outcome = samples.outcome[chosen]
    answered = outcome == Outcome.ANSWERED
    latency = np.sort((samples.done - samples.due)[chosen][answered])
    seconds = samples.end - samples.begin
    count = int(chosen.sum())
    share = max(1, count)
    sent = samples.sent[chosen]
    lags = (sent - samples.due[chosen])[np.isfinite(sent)]
    return Figures(
        requests=count,
        offered=count / seconds,
        answered=len(latency) / seconds,
        rows=float(samples.rows[chosen][answered].sum()) / seconds,
        refused=int((outcome == Outcome.REFUSED).sum()) / share,
        failed=int((outcome >= Outcome.FAILED).sum()) / share,
        good=None if within is None else int((latency <= within).sum()) / share,
        mean=float(latency.mean()) if len(latency) else float("nan"),
        quantiles={name: quantile(latency, q) for name, q in QUANTILES.items()},
        most=float(latency[-1]) if len(latency) else float("nan"),
        lag=quantile(np.sort(lags), 0.99),
        seconds=seconds,
    )


def quantile(ordered: Floats, q: float) -> float:
    """The least value that a share `q` of them doesn't pass; NaN of none. `ordered` rises."""
    if not len(ordered):
        return float("nan")
    return float(ordered[min(len(ordered) - 1, max(0, int(np.ceil(q * len(ordered))) - 1))])


def by_kind(samples: Samples, within: float | None) -> Sequence[tuple[str, Figures]]:
    """The figures of each kind of request, where there's more than one."""
    if len(samples.kinds) < 2:
        return ()
    return [(name, figures(samples, within, samples.kind == number)) for number, name in enumerate(samples.kinds)]
