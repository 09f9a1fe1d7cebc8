"""Which answers the drift guard looks at, and when it may: a cap on their share, a budget of device time that wins, idle gaps first. Pure.

One row of an answer is a sample: few rows of many answers say more than many rows of one, whose rows are much alike. What waits to be
compared is bounded in number and bytes; while there's no room the answers go by unseen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import random
from typing import Protocol

from server.messages import Layout
from server.tensors import Tensor

MOST_WAITING = 64
MOST_BYTES = 16 << 20
MOST_AT_ONCE = 4  # samples of one replay: it can't be interrupted, and a request that comes meanwhile waits for it
SPAN = 10.0  # seconds of budget that may be saved up for a burst
RECENT = 60.0  # seconds that the share of device time is told over


class Settings(Protocol):
    """What the operator says of the guard: `precision.guard` of model.yaml."""

    @property
    def sample(self) -> float:
        """Most answers that are compared, as a share of all."""
        ...

    @property
    def budget(self) -> float:
        """Most device time that this may take, as a share."""
        ...

    @property
    def floor(self) -> float:
        """Answers a second that are compared also while the device is never idle."""
        ...

    @property
    def tolerate(self) -> float:
        """The share of differing rows from which on a variant must not serve."""
        ...

    @property
    def distance(self) -> float:
        """Relative distance over which a row without a top-1 differs."""
        ...

    @property
    def keep_worst(self) -> int:
        """Worst samples that are kept in files; 0: none."""
        ...

    @property
    def keep_for(self) -> float:
        """Seconds for which they are kept."""
        ...

    @property
    def redact(self) -> tuple[str, ...]:
        """Inputs that are never written."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One row of one answer, as `precision` gave it at `at`."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    layout: Layout
    precision: str
    at: float
    size: int


class Sampler:
    """Draws each answer with the chance `share`, all with the same, by drawing how many go by until the next: an answer that isn't drawn
    costs a subtraction at the most. Raises ValueError for a share that isn't one."""

    def __init__(self, share: float, draw: Callable[[], float] = random) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"expected a share over 0 and up to 1, got {share}")
        self._log_passed = math.log1p(-share) if share < 1 else -math.inf
        self._draw = draw
        self._left = self._gap()

    def drawn(self, answers: int) -> tuple[int, ...]:
        """Of `answers` more answers, the positions of those that are drawn."""
        if self._left >= answers:
            self._left -= answers
            return ()
        found = []
        while self._left < answers:
            found.append(self._left)
            self._left += 1 + self._gap()
        self._left -= answers
        return tuple(found)

    def _gap(self) -> int:
        return int(math.log(1.0 - self._draw()) / self._log_passed)  # 1 - draw is over 0


class Waiting:
    """Samples that wait to be compared, oldest first. `passed` counts those for which there was no room."""

    def __init__(self, most: int = MOST_WAITING, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._samples: deque[Sample] = deque()
        self.bytes = 0
        self.passed = 0

    def __len__(self) -> int:
        return len(self._samples)

    def room(self, size: int) -> bool:
        """Whether a sample of so many bytes may wait; counts it as passed where it mayn't."""
        fits = len(self._samples) < self._most and self.bytes + size <= self._most_bytes
        self.passed += not fits
        return fits

    def add(self, sample: Sample) -> None:
        """Let it wait; ask `room` before."""
        self._samples.append(sample)
        self.bytes += sample.size

    def take(self, most: int) -> list[Sample]:
        """The oldest, at most so many, no longer waiting."""
        taken = [self._samples.popleft() for _ in range(min(most, len(self._samples)))]
        self.bytes -= sum(sample.size for sample in taken)
        return taken

    def clear(self) -> None:
        """Forget all."""
        self._samples.clear()
        self.bytes = 0


class Pacer:
    """When a replay may begin. It earns `budget` seconds of the device a second and spends what its runs take; over any time the share is
    the budget at the most, but for SPAN seconds of it saved up and the last run. While the device is busy only `floor` samples a second."""

    def __init__(self, budget: float, floor: float, now: float) -> None:
        self._budget, self._floor = budget, floor
        self._most = budget * SPAN
        self._saved = 0.0
        self._at = self._began = now
        self._due = now  # when the next one may begin though the device is busy
        self._recent: deque[tuple[float, float]] = deque()
        self.seconds = 0.0

    def may(self, now: float, cost: float, *, idle: bool) -> int:
        """How many samples a replay may take that begins now; `cost` is what it's expected to take, in seconds."""
        self._earn(now)
        if self._saved < min(cost, self._most):
            return 0
        if idle:
            return MOST_AT_ONCE
        return 1 if self._floor > 0 and now >= self._due else 0

    def spent(self, now: float, seconds: float, samples: int) -> None:
        """A replay took so many seconds of the device."""
        self._earn(now)
        self._saved -= seconds
        self.seconds += seconds
        if self._floor > 0:
            self._due = now + samples / self._floor
        self._recent.append((now, seconds))
        while self._recent[0][0] < now - RECENT:
            self._recent.popleft()

    def share(self, now: float) -> float:
        """The share of the device's time that replays took of late. Any thread."""
        seconds = sum(each for at, each in self._recent.copy() if at >= now - RECENT)
        return seconds / max(1.0, min(RECENT, now - self._began))

    def _earn(self, now: float) -> None:
        self._saved = min(self._most, self._saved + self._budget * max(0.0, now - self._at))
        self._at = now
