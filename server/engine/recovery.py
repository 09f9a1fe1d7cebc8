"""What to do when a lane is lost: which batch is tried again, which input is to blame, how long to wait. Pure: no lane, no loop, no clock.

A batch whose lane was lost is tried once more in a fresh lane. If that is lost too, the batch is halved in a quarantine lane, apart from
the lanes that serve, until the request that kills its process is found. It alone fails; the others are answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Generic, TypeVar

from server.protocol.binary_codec import raw_values
from server.tensors import Tensor

MOST_DEATHS = 32  # of lanes for one batch: then it isn't one input that kills, and the rest of the batch fails unblamed
REFUSED_FOR = 60.0  # seconds
MOST_REFUSED = 256
CALM = 2.0  # seconds that a lane must have lived for its loss to be the first in a row
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
DOWN_AFTER = 3  # losses in a row, with no lane left: the model isn't ready

T = TypeVar("T")


class Stage(StrEnum):
    """Where a batch is being run."""

    SERVING = "serving"
    RETRY = "retry"
    QUARANTINE = "quarantine"


class Step(StrEnum):
    """What is done with a batch whose lane was lost."""

    RETRY = "try it again in a fresh lane"
    ISOLATE = "try it in the quarantine lane"
    BISECT = "try its halves in the quarantine lane"
    BLAME = "blame its only request"


TABLE: Mapping[tuple[Stage, bool], tuple[Step, Stage | None]] = MappingProxyType(
    {
        (Stage.SERVING, False): (Step.RETRY, Stage.RETRY),
        (Stage.SERVING, True): (Step.RETRY, Stage.RETRY),
        (Stage.RETRY, False): (Step.BISECT, Stage.QUARANTINE),
        (Stage.RETRY, True): (Step.ISOLATE, Stage.QUARANTINE),
        (Stage.QUARANTINE, False): (Step.BISECT, Stage.QUARANTINE),
        (Stage.QUARANTINE, True): (Step.BLAME, None),
    }
)
"""(where it ran, whether it's one request alone) → what is done, and where it runs next. A batch that is answered leaves the table."""


@dataclass(slots=True, eq=False)
class Trail:
    """What one batch has cost so far, with all its parts."""

    deaths: int = 0


@dataclass(slots=True, eq=False)
class Case(Generic[T]):
    """A batch under suspicion, or a part of one. `guilty`: its other half was answered, so that the death of both was its doing."""

    members: list[T]
    stage: Stage = Stage.SERVING
    trail: Trail = field(default_factory=Trail)
    guilty: bool = False
    other: Case[T] | None = None


@dataclass(slots=True)
class Verdict(Generic[T]):
    """What follows from a loss: `retry` runs in a fresh lane; `blamed` failed by their own doing, `failed` by nobody's."""

    retry: Case[T] | None = None
    blamed: list[T] = field(default_factory=list)
    failed: list[T] = field(default_factory=list)


class Docket(Generic[T]):
    """The cases that wait for the quarantine lane, next one last."""

    def __init__(self) -> None:
        self._waiting: list[Case[T]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def lost(self, case: Case[T]) -> Verdict[T]:
        """The lane was lost that ran `case`."""
        case.trail.deaths += 1
        step, stage = TABLE[case.stage, len(case.members) == 1]
        verdict: Verdict[T] = Verdict(blamed=case.members if step is Step.BLAME else [])
        if case.trail.deaths >= MOST_DEATHS:
            parts = [case] if step is not Step.BLAME else []
            parts += [part for part in self._waiting if part.trail is case.trail]
            self._waiting = [part for part in self._waiting if part.trail is not case.trail]
            verdict.failed = [member for part in parts for member in part.members]
            return verdict
        case.stage = stage or case.stage
        if step is Step.RETRY:
            verdict.retry = case
        elif step is Step.BISECT:
            self._waiting += _halves(case)
        elif step is Step.ISOLATE:
            self._waiting.append(case)
        return verdict

    def answered(self, case: Case[T]) -> None:
        """`case` was answered: if it was a half, the other one is to blame for what befell both."""
        if case.other is not None:
            case.other.guilty = True

    def next(self) -> Case[T] | None:
        """What to run next in the quarantine lane. A guilty part is halved untried: that it kills is known."""
        if not self._waiting:
            return None
        case = self._waiting.pop()
        while case.guilty and len(case.members) > 1:
            second, case = _halves(case)
            self._waiting.append(second)
        return case

    def clear(self) -> list[T]:
        """Take everything out."""
        waiting, self._waiting = self._waiting, []
        return [member for case in waiting for member in case.members]


def _halves(case: Case[T]) -> list[Case[T]]:
    """The second half and the first, in the order of a stack."""
    middle = (len(case.members) + 1) // 2
    first, second = (Case(members, Stage.QUARANTINE, case.trail) for members in (case.members[:middle], case.members[middle:]))
    first.other = second
    return [second, first]


class Backoff:
    """How long to wait before a lost lane is opened again: not at all the first time, then longer and longer."""

    def __init__(self) -> None:
        self.losses = 0

    def lost(self, lived: float) -> float:
        """A lane was lost, or couldn't be opened, that had lived so many seconds. Seconds to wait."""
        self.losses = 1 if lived >= CALM else self.losses + 1
        return 0.0 if self.losses == 1 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.losses - 2, 16))

    def explained(self) -> None:
        """An input was found to blame: the lane isn't."""
        self.losses = 0


class Refusals:
    """Fingerprints of inputs that killed a process, each refused for REFUSED_FOR seconds."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, fingerprint: bytes, now: float) -> None:
        """Refuse it from `now` on. The oldest is forgotten when there are MOST_REFUSED."""
        self._until.pop(fingerprint, None)
        if len(self._until) >= MOST_REFUSED:
            del self._until[next(iter(self._until))]
        self._until[fingerprint] = now + REFUSED_FOR

    def left(self, inputs: Mapping[str, Tensor], now: float) -> float:
        """For how many seconds these inputs are still refused; 0 for those that aren't."""
        while self._until and (oldest := next(iter(self._until.items())))[1] <= now:
            del self._until[oldest[0]]
        return max(0.0, self._until.get(fingerprint(inputs), now) - now) if self._until else 0.0


def fingerprint(inputs: Mapping[str, Tensor]) -> bytes:
    """A hash of all input names, datatypes, shapes and bytes, whatever their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(raw_values(array))
    return digest.digest()


def diagram() -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", "    [*] --> serving"]
    for (stage, alone), (step, following) in TABLE.items():
        lines.append(f"    {stage} --> {following or '[*]'}: lost with {'one request' if alone else 'several requests'}, so {step.value}")
    return "\n".join([*lines, *(f"    {stage} --> [*]: answered" for stage in Stage)])
