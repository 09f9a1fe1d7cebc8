"""What the two arms of an experiment did since its owner last looked: counted as requests are answered, taken by the owner's tick.

One Tally stands for one share of one experiment: answers that come after the share has changed are still counted where chance chose their
arm. Nothing here waits, judges or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import NamedTuple

import numpy as np

from server.messages import CancelHandle, InferRequest, InferResponse, OnResponse
from server.router.evidence import UNIT, Arm, Sums
from server.router.experiment import EXPOSURES
from server.router.live.exposures import Exposures
from server.tensors import Tensor

TRUNCATED = 10
"""Times the objective: where a latency ends to count as longer."""
MOST_LOOKED_AT = 1 << 16
"""Elements of an output that are looked at for NaN and Inf."""


class Counts:
    """One arm's, since they were last taken; `requests` is never taken."""

    __slots__ = ("failed", "n", "requests", "slow", "squares", "timed", "units")

    def __init__(self) -> None:
        self.requests = self.n = self.failed = self.timed = self.units = self.squares = self.slow = 0

    def take(self) -> Iterator[tuple[str, Sums]]:
        """What was counted, by metric; then nothing is."""
        if self.n:
            yield EXPOSURES, Sums.of_events(self.n, self.failed)
        if self.timed:
            yield "latency", Sums(self.timed, self.units, self.squares)
            yield "slow", Sums.of_events(self.timed, self.slow)
        self.n = self.failed = self.timed = self.units = self.squares = self.slow = 0


class Scope(NamedTuple):
    """What a tally counts: the canary's version and its share in percent; `objective` in seconds, 0 where latency isn't judged."""

    canary: str
    stratum: float
    objective: float


class Tally:
    """`unsound` is called with each of the canary's answers that isn't finite; `exposures` remember who got what."""

    __slots__ = ("_limit", "arms", "compared", "differing", "exposures", "open", "scope", "unsound")

    def __init__(self, scope: Scope, exposures: Exposures, unsound: Callable[[InferRequest, InferResponse], None]) -> None:
        self.scope = scope
        self.exposures = exposures
        self.unsound = unsound
        self.arms = {Arm.BASELINE: Counts(), Arm.CANARY: Counts()}
        self.open = 0
        self.compared = self.differing = 0  # shadow copies since they were last taken
        self._limit = TRUNCATED * scope.objective

    def begin(self, request: InferRequest, version: str, on_response: OnResponse) -> Watch:
        """Count a request that chance gave to a version; what is given back hears of its answer in place of `on_response`."""
        arm = Arm.CANARY if version == self.scope.canary else Arm.BASELINE
        self.open += 1
        if request.id or request.sticky:
            self.exposures.add(request.id, request.sticky, arm, self.scope.stratum)
        return Watch(self, arm, request, on_response)

    def take(self) -> Iterator[tuple[str, Arm, Sums]]:
        """What was counted, by metric and arm; then nothing is."""
        for arm, counts in self.arms.items():
            for metric, sums in counts.take():
                yield metric, arm, sums
        if self.compared:
            yield "agreement", Arm.CANARY, Sums.of_events(self.compared, self.differing)
        self.compared = self.differing = 0

    def told(self, differs: bool) -> None:
        """A shadow copy's answer was compared with the baseline's."""
        self.compared += 1
        self.differing += differs

    def answered(self, arm: Arm, request: InferRequest, response: InferResponse) -> None:
        """A request has its answer."""
        self.open -= 1
        counts = self.arms[arm]
        counts.n += 1
        counts.requests += 1
        if response.error is not None:
            counts.failed += 1
            return
        self._timed(counts, request)
        if arm is Arm.CANARY and not finite(response.outputs):
            self.unsound(request, response)

    def ended(self, arm: Arm, request: InferRequest, *, failed: bool) -> None:
        """A request ends without an answer: refused by the version, or given up by its client, whose patience counts as its latency."""
        self.open -= 1
        counts = self.arms[arm]
        counts.n += 1
        counts.requests += 1
        if failed:
            counts.failed += 1
        else:
            self._timed(counts, request)

    def _timed(self, counts: Counts, request: InferRequest) -> None:
        if not self._limit:
            return
        seconds = monotonic() - request.received
        units = UNIT if seconds >= self._limit else int(seconds / self._limit * UNIT)
        counts.timed += 1
        counts.units += units
        counts.squares += units * units
        counts.slow += seconds > self.scope.objective


class Watch:
    """Stands between an engine and whoever waits for its answer: called with it, and told where nobody waits any more."""

    __slots__ = ("_arm", "_on_response", "_over", "_request", "_tally", "handle")

    def __init__(self, tally: Tally, arm: Arm, request: InferRequest, on_response: OnResponse) -> None:
        self._tally = tally
        self._arm = arm
        self._request = request
        self._on_response = on_response
        self._over = False
        self.handle: CancelHandle | None = None

    def __call__(self, response: InferResponse, final: bool) -> None:
        """The answer."""
        if not self._over:
            self._over = True
            self._tally.answered(self._arm, self._request, response)
        self._on_response(response, final)

    def refused(self) -> None:
        """The version didn't take the request."""
        self._end(failed=True)

    def cancel(self) -> None:
        """The client went away."""
        self._end(failed=False)
        if self.handle is not None:
            self.handle.cancel()

    def _end(self, *, failed: bool) -> None:
        if not self._over:
            self._over = True
            self._tally.ended(self._arm, self._request, failed=failed)


def finite(arrays: Mapping[str, Tensor]) -> bool:
    """Whether an answer's or a request's numbers are all finite, as far as they're looked at."""
    for array in arrays.values():
        if array.dtype.kind == "f" and not np.isfinite(array if array.size <= MOST_LOOKED_AT else array.ravel()[:MOST_LOOKED_AT]).all():
            return False
    return True
