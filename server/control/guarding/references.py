"""Where the guard's reference lives, as `precision.guard.reference` says: loaded all the time, for a round of samples, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

from server.engine.engine import Engine
from server.errors import TidegateError
from server.precision.variants import State
from server.repository.declare.precision import REFERENCE
from server.router.table import ServedVariant, ServedVersion

LOADED = (State.WARM, State.ACTIVE, State.DRAINING)
ROUND = 32  # samples that make it worth loading the reference on demand
BETWEEN_ROUNDS = 300.0  # seconds


class Holder(Protocol):
    """What keeps variants loaded: control.precision.precisions is one."""

    async def hold(self, name: str, version: str, precision: str) -> None:
        """Load a variant if it isn't, and have it stay. Raises TidegateError."""
        ...

    def release(self, name: str, version: str, precision: str) -> None:
        """Undo one `hold`."""
        ...


class Held:
    """One variant of a version, held while it's needed."""

    def __init__(self, holder: Holder, served: ServedVersion, precision: str) -> None:
        self.why = ""
        self._holder = holder
        self._at = served.model, served.version, precision
        self._variants: Mapping[str, ServedVariant] = served.variants
        self._held = False
        self._turn = asyncio.Lock()

    @property
    def engine(self) -> Engine | None:
        """What runs it, None while it isn't loaded."""
        variant = self._variants.get(self._at[2])
        return variant.engine if variant is not None and variant.state in LOADED else None

    async def hold(self) -> Engine | None:
        """Load it if it isn't, and keep it loaded; None where that can't be, and `why`."""
        if self._held and (engine := self.engine) is not None:
            return engine
        async with self._turn:  # whoever comes meanwhile waits for the same load
            if not self._held or self.engine is None:
                await self._load()
        return self.engine

    async def _load(self) -> None:
        self.release()
        try:
            await self._holder.hold(*self._at)
        except TidegateError as error:
            self.why = str(error)
        else:
            self._held, self.why = True, ""

    def release(self) -> None:
        """Needed no more."""
        if self._held:
            self._held = False
            self._holder.release(*self._at)


class LivingReference:
    """FP32 of a version: see guard.asking.Reference. `kind` is guard.reference's word."""

    def __init__(self, holder: Holder, served: ServedVersion, kind: str) -> None:
        self._held = Held(holder, served, REFERENCE)
        self._kind = kind
        self._next_round = 0.0
        self._elsewhere = kind == "cpu" and served.device != "cpu"

    @property
    def why(self) -> str:
        """Why it isn't there."""
        if self._elsewhere:
            return "FP32 on the CPU beside a model on a GPU isn't built: reference resident or on_demand"
        return self._held.why

    @property
    def engine(self) -> Engine | None:
        return self._held.engine

    def due(self, waiting: int) -> bool:
        """Whether so many samples are worth asking it now."""
        if self._kind != "on_demand" or self._held.engine is not None:
            return waiting > 0
        return waiting >= ROUND and monotonic() >= self._next_round

    async def summon(self, *, urgent: bool) -> Engine | None:
        """Load it if it isn't; on demand that's for a round of samples, or at once where a client waits."""
        del urgent
        return None if self._elsewhere else await self._held.hold()

    def dismiss(self) -> None:
        """A round is over."""
        if self._kind == "on_demand" and self._held.engine is not None:
            self._next_round = monotonic() + BETWEEN_ROUNDS
            self._held.release()

    async def settle(self) -> None:
        """Have it there from the start, where it's to be there all the time."""
        if self._kind != "on_demand" and not self._elsewhere:
            await self._held.hold()

    def leave(self) -> None:
        """The guard ends."""
        self._held.release()
