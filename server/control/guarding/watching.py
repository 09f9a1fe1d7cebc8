"""What is known of one version that is guarded, and whom the guard acts through."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.control.guarding.references import Held, Holder, LivingReference
from server.explain import capacity_of
from server.metrics.rate import Rate
from server.precision.drift import Admission, rates
from server.precision.guard.guard import Guard
from server.precision.guard.record import Record, proof_of
from server.precision.guard.worst import Worst
from server.precision.variants import State
from server.repository.declare.precision import REFERENCE
from server.repository.declare.precision import Guard as Settings
from server.router.table import ServedVersion

HALFWAY = "fp16"  # where to step under high load, if it's clean
WHO = "guard"


class Stage(Holder, Protocol):
    """What steps are made on; the control plane is one."""

    async def step(self, name: str, precision: str | None, who: str, why: str) -> None:
        """Have a model answer in a precision. Raises TidegateError."""
        ...

    async def pin_out(self, name: str, precision: str, who: str, why: str, version: str = "") -> None:
        """Have a precision not answer for a while, and another in its place. Raises TidegateError."""
        ...


class Tell(Protocol):
    """Logs what became of a version."""

    def __call__(self, event: str, known: Watching, *, level: str = "info", **facts: Any) -> None: ...


@dataclass(slots=True, eq=False)
class Watching:
    """One version's guard. `served` is the version as it serves now; `task` compares, `acting` falls back. `worst` is where the worst
    samples are kept, None where they aren't; `offered` are the rows that it's asked for."""

    served: ServedVersion
    guard: Guard
    reference: LivingReference
    worst: Worst | None = None
    task: asyncio.Task[None] | None = None
    acting: asyncio.Task[None] | None = None
    admitting: Held | None = None
    again: float = 0.0
    offered: Rate = field(default_factory=lambda: Rate(lambda: 0.0))

    def follow(self, served: ServedVersion) -> None:
        """It serves like this now."""
        self.served = served
        engine = served.engine
        assert engine is not None
        if self.guard.newest is engine:
            return
        record = self.guard.records.get(engine.key.precision)
        if record is not None and not record.clean and self.acting is None:
            record.anew()  # its pin is over
        self.offered = Rate(lambda: engine.offered_rows)
        self.guard.watch(engine)

    @property
    def halfway(self) -> str | None:
        """FP16, where it's clean and FP32 couldn't bear the load."""
        served, variants = self.served, self.served.variants
        halfway, exact, record = variants.get(HALFWAY), variants[REFERENCE].served, self.guard.records.get(HALFWAY)
        active = served.engine.key.precision if served.engine is not None else ""
        if halfway is None or record is None or active == HALFWAY or not record.clean or not halfway.proven:
            return None
        if halfway.state in (State.PINNED_OUT, State.FAILED) or exact is None:
            return None
        return HALFWAY if self.offered.read() > served.config.precision.down_at * capacity_of(exact).rows_per_s else None

    def leave(self) -> None:
        """Watch it no more."""
        self.guard.watch(None)
        if self.task is not None:
            self.task.cancel()
        self.reference.leave()
        if self.admitting is not None:
            self.admitting.release()

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        version = {"version": self.served.version, "acting": self.acting is not None, "keeps_worst": self.worst is not None}
        return {**version, **self.guard.told()}


def records_of(served: ServedVersion, settings: Settings) -> dict[str, Record]:
    """A record for each variant but the reference, with what its proof says."""
    records = {}
    for name, variant in served.variants.items():
        if name == REFERENCE:
            continue
        proof = proof_of(served.manifest.variant(name) if served.manifest is not None else None)
        known = rates(proof.disagreement, settings.tolerate)
        record = records[name] = Record(name, known, max(settings.distance, proof.distance), proof.classes)
        if not variant.proven:
            record.admission = Admission(rates(None, settings.tolerate))
    return records
