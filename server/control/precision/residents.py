"""Which variants are loaded: brings one in beside what serves, puts it in its place, lets go what nobody needs. In the event loop.

A swap is one reference in the serving table. What answered before drains, then stays warm as far as model.yaml's `keep`, those who hold it
and the device's memory allow. Whoever loads or swaps holds the model's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from time import monotonic, time
from typing import Any

from server.config import Settings
from server.control.admissions import Admissions
from server.control.loading import DRAIN_POLL, Loader
from server.control.precision.choices import Pin, in_precision
from server.control.serving import Serving
from server.engine.engine import Engine
from server.errors import ModelDefect
from server.lanes.base import Lane
from server.lanes.opening import Opened
from server.lanes.pad_proof import pad_fault
from server.logs import Journal
from server.messages import ModelKey
from server.metrics.recorder import Recorder
from server.precision.variants import LOADED, Event, Holding, State, make_room, most_exact_first
from server.repository.declare.precision import REFERENCE
from server.repository.declare.said import Loadable
from server.repository.manifest import processor
from server.repository.model_config import ModelConfig
from server.repository.store import Entry
from server.router.table import ServedVariant, ServedVersion, ServingTable
from server.router.table import State as Ready
from server.sequences import Sequences
from server.state.base import Event as Event_
from server.state.changes import Changes
from server.tensors import TensorSpec


class FilesChanged(ModelDefect):
    """A variant can't be opened beside what serves: that was loaded from other files."""


class Residents:
    """`admissions` and `serving` are the control plane's."""

    def __init__(
        self, settings: Settings, table: ServingTable, recorder: Recorder, journal: Journal, loader: Loader, changes: Changes
    ) -> None:
        self._settings = settings
        self._table = table
        self._recorder = recorder
        self._journal = journal
        self._loader = loader
        self._entries: dict[tuple[str, str], Entry] = {}
        self._leaving: dict[asyncio.Task[None], Engine | None] = {}
        self._changes = changes
        self.admissions = Admissions(table, journal, changes)
        self.serving = Serving(table, recorder, journal)
        self.serving.on_lanes = self._on_lanes

    async def begin(self, entry: Entry, loadable: Loadable, opened: Opened, pins: Mapping[tuple[str, str], Pin]) -> ServedVersion:
        """A version that was just opened, with all its variants; nothing serves it or shows it yet. Raises ModelDefect where the device's
        memory doesn't hold it; nothing stays open then."""
        served = await self._serve(loadable, opened, None)
        active = loadable.spec.precision
        names = most_exact_first({**dict.fromkeys(loadable.expected), active: None})
        served.variants.update((name, _variant(loadable, name)) for name in names)
        now = monotonic()
        variant = served.variants[active]
        variant.step(Event.LOAD, now)
        self._loaded(variant, served)
        try:
            await self._make_room(served, variant, 0)
        except ModelDefect:
            await self.withdraw(served, 0.0)
            raise
        variant.step(Event.READY, now)
        variant.step(Event.ACTIVATE, now)
        for (version, precision), pin in pins.items():
            if version == served.version and precision in served.variants:
                self._pinned(served.variants[precision], pin)
        self._entries[served.model, served.version] = entry
        self.admissions.renew(served)
        return served

    async def ready(self, served: ServedVersion, precision: str) -> ServedVariant:
        """A variant that is loaded and warmed up; loads it beside what serves where it isn't. Raises ModelDefect with the reason."""
        variant = served.variants[precision]
        if variant.state in LOADED:
            return variant
        if variant.state is State.PINNED_OUT:
            raise ModelDefect(f"{precision} is pinned out for {max(0.0, variant.pinned_until - monotonic()):.0f} s more: {variant.why}")
        if variant.state is State.FAILED:
            self._let_go(variant)
        variant.step(Event.LOAD, monotonic())
        try:
            await self._make_room(served, variant, variant.memory)
            loadable, opened = await self._open(served, precision)
            fresh = await self._serve(loadable, opened, served)
        except ModelDefect as error:
            variant.step(Event.FAIL, monotonic(), str(error))
            self._tell("variant_not_loaded", served, variant, level="warning", reason=str(error))
            raise
        except asyncio.CancelledError:
            variant.step(Event.WITHDRAW, monotonic())
            raise
        fresh.variants, fresh.offered = served.variants, served.offered
        self._loaded(variant, fresh)
        self.serving.show(fresh)
        if variant.step(Event.READY, monotonic()) is State.PINNED_OUT:
            self._let_go(variant)
            raise ModelDefect(f"{precision} was pinned out while it was loaded: {variant.why}")
        self._tell("variant_loaded", fresh, variant, lanes=fresh.lanes, seconds=round(fresh.load_seconds, 3), memory=variant.memory)
        try:
            await self._make_room(fresh, variant, 0)
        except ModelDefect as error:
            variant.step(Event.FAIL, monotonic(), str(error))
            self._let_go(variant)
            raise
        return variant

    def activate(self, variant: ServedVariant) -> None:
        """Put a loaded variant in the place of the one that answers: no request sees it, and none is answered by both."""
        fresh, now = variant.served, monotonic()
        assert fresh is not None
        assert fresh.engine is not None
        before = active_of(fresh.variants)
        old = self._table.version(fresh.model, fresh.version)
        if before is variant:
            return
        if before is not None:
            before.step(Event.REPLACE, now)
        variant.step(Event.ACTIVATE, now)
        if isinstance(fresh.front, Sequences):
            fresh.front.adopt(fresh.engine)
        fresh.state, fresh.reason = Ready.READY, fresh.note
        self.serving.attend(fresh)
        self.admissions.renew(fresh)
        self._table.put(fresh)
        if before is not None:
            self._start(self._drained(before), None)
        elif old is not None and (gone := fresh.variants.get(_key(old).precision)) is not None and gone is not variant:
            self._let_go(gone)  # it had failed or was pinned out while it answered

    def pin(self, variant: ServedVariant, why: str) -> Pin:
        """Have a variant that doesn't answer be out for a while: twice as long each time. It gives its memory back."""
        variant.step(Event.PIN, monotonic(), why)
        self._let_go(variant)
        return Pin(time() + variant.pinned_until - monotonic(), variant.pins, why)

    def unpin(self, variant: ServedVariant, why: str) -> None:
        """Its time is over."""
        if variant.state is State.PINNED_OUT:
            variant.step(Event.UNPIN, monotonic(), why)

    def tidy(self, variants: Mapping[str, ServedVariant]) -> None:
        """Let go what is warm and that nobody needs."""
        warm = [variant for variant in variants.values() if variant.state is State.WARM and not variant.holders and variant.served]
        warm.sort(key=lambda variant: variant.used, reverse=True)
        keep = warm[0].served.config.precision.keep if warm and warm[0].served else 0
        for variant in warm[keep:]:
            self._evict(variant, "nothing keeps it loaded")

    def entry(self, served: ServedVersion) -> Entry:
        """What the version was loaded from."""
        return self._entries[served.model, served.version]

    async def withdraw(self, served: ServedVersion, timeout: float) -> None:
        """Let a version that gets no more requests answer those that it has, for `timeout` seconds, and give the lanes of all its
        variants back."""
        await self._loader.retire(served, timeout)
        for variant in served.variants.values():
            variant.served = None
            if variant.state is not State.ABSENT:
                variant.step(Event.WITHDRAW, monotonic())

    async def close(self) -> None:
        """End what still drains."""
        for engine in self._leaving.values():
            if engine is not None:
                engine.abandon()
        for task, engine in self._leaving.copy().items():
            if engine is None:
                task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _open(self, served: ServedVersion, precision: str) -> tuple[Loadable, Opened]:
        loadable, opened = await self._loader.open(in_precision(self.entry(served), precision), served.version)
        assert opened is not None
        assert served.engine is not None
        if (loadable.manifest, _besides(loadable.config)) != (served.manifest, _besides(served.config)):
            await self._close(opened.lanes)
            raise FilesChanged(f"{loadable.spec.path}: the model was changed since it was loaded; load it again")
        lane, engine = opened.lanes[0], served.engine
        for ours, theirs in ((lane.inputs, engine.inputs), (lane.outputs, engine.outputs)):
            if (fault := _unlike(ours, theirs)) is not None:
                await self._close(opened.lanes)
                raise ModelDefect(f"{loadable.spec.path}: {fault}: a client of one precision couldn't be answered by the other")
        return loadable, opened

    async def _serve(self, loadable: Loadable, opened: Opened, beside: ServedVersion | None) -> ServedVersion:
        unpadded = await pad_fault(opened.lanes[0], loadable.padding) if loadable.padding and opened.warmup.batched else ""
        return self.serving.serve(loadable, opened, unpadded, beside)

    async def _close(self, lanes: tuple[Lane, ...]) -> None:
        for lane in lanes:
            await self._loader.run(lane.close)

    def _loaded(self, variant: ServedVariant, served: ServedVersion) -> None:
        """It has an engine from now on."""
        assert served.engine is not None
        variant.served, variant.figures = served, served.engine.figures
        variant.cost = served.engine.batcher.costs
        variant.memory = sum(held.bytes for held in served.memory if (held.kind == "GPU") == served.device.startswith("cuda:"))

    async def _make_room(self, served: ServedVersion, variant: ServedVariant, need: int) -> None:
        """Raises ModelDefect where the device's memory doesn't hold what is loaded and `need` bytes more."""
        budget = self._settings.limits.variant_memory
        if budget is None:
            return
        others = [each for found in self._table if found.device == served.device for each in found.variants.values()]
        held = dict.fromkeys((*others, variant))
        holdings = [Holding(each, 0 if need and each is variant else each.memory, each.used, each.state, each.holders > 0) for each in held]
        room = make_room(holdings, need, budget)
        if room.short:
            raise ModelDefect(
                f"{variant.precision} takes {variant.memory} bytes of {served.device}, {room.short} more than limits.variant_memory "
                f"({budget}) has left; what answers, or is held, isn't evicted for it"
            )
        for each in room.evict:
            task = self._evict(each, f"its memory is needed for {served.model} {variant.precision}")
            if task is not None:
                await asyncio.wait([task])

    def _evict(self, variant: ServedVariant, why: str) -> asyncio.Task[None] | None:
        variant.step(Event.EVICT, monotonic(), why)
        return self._let_go(variant)

    def _let_go(self, variant: ServedVariant) -> asyncio.Task[None] | None:
        """Give its lanes back once what it took is answered."""
        served, variant.served = variant.served, None
        if served is None or served.engine is None:
            return None
        self._recorder.rest(_key(served))
        self._tell("variant_unloaded", served, variant, reason=variant.why)
        return self._start(self._loader.retire_engine(served.engine, self._settings.drain_timeout), served.engine)

    async def _drained(self, variant: ServedVariant) -> None:
        """Wait until it has answered what it took, then decide whether it stays."""
        engine = variant.engine
        assert engine is not None
        with suppress(TimeoutError):  # asked for by name, it may never be idle
            async with asyncio.timeout(self._settings.drain_timeout):
                while not engine.idle:
                    await asyncio.sleep(DRAIN_POLL)
        if variant.engine is engine and variant.state is State.DRAINING and variant.served is not None:
            variant.step(Event.DRAINED, monotonic())
            self.tidy(variant.served.variants)

    def _on_lanes(self, served: ServedVersion, why: str) -> None:
        """All processes of a variant are lost, or are back. One that doesn't answer isn't waited for."""
        variant = served.variants.get(_key(served).precision)
        if variant is None or variant.served is not served:
            return
        now, active = monotonic(), self._table.version(served.model, served.version) is served
        if why and variant.state in LOADED:
            variant.step(Event.FAIL, now, why)
            if not active:
                self._let_go(variant)
        elif not why and variant.state is State.FAILED:
            for event in (Event.LOAD, Event.READY, Event.ACTIVATE):
                variant.step(event, now)

    def _pinned(self, variant: ServedVariant, pin: Pin) -> None:
        """As it was pinned out before the restart."""
        if variant.state is not State.ACTIVE:  # where nothing else can answer it does all the same
            variant.step(Event.PIN, monotonic(), pin.why)
            variant.pins, variant.pinned_until = pin.number, monotonic() + pin.until - time()

    def _tell(self, event: str, served: ServedVersion, variant: ServedVariant, *, level: str = "info", **facts: Any) -> None:
        self._journal.lifecycle(event, level=level, model=served.model, version=served.version, precision=variant.precision, **facts)
        self._recorder.ring.routing((monotonic(), served.model, served.version, f"{event} {variant.precision}"))
        now = f"{served.version} {variant.precision} {variant.state}"
        self._start(self._changes.note(Event_(0.0, "", event, served.model, "", now, str(facts.get("reason", "")))), None)

    def _start(self, work: Coroutine[Any, Any, None], engine: Engine | None) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._leaving[task] = engine
        task.add_done_callback(self._leaving.pop)
        return task


def active_of(variants: Mapping[str, ServedVariant]) -> ServedVariant | None:
    """The one that answers, None where that failed or is pinned out."""
    return next((variant for variant in variants.values() if variant.state is State.ACTIVE), None)


def answering(served: ServedVersion) -> str:
    """The precision of what takes a version's requests."""
    return served.serving.key.precision if served.serving is not None else ""


def _key(served: ServedVersion) -> ModelKey:
    assert served.engine is not None
    return served.engine.key


def _besides(config: ModelConfig) -> ModelConfig:
    """A configuration but for the precision that was asked for."""
    return config.model_copy(update={"precision": config.precision.model_copy(update={"active": None})})


def _variant(loadable: Loadable, precision: str) -> ServedVariant:
    """What the manifest knows of a precision before it's loaded."""
    found = loadable.manifest.variant(precision) if loadable.manifest is not None else None
    if found is None:
        return ServedVariant(precision, proven=True)
    memory = found.size if found.memory is None else found.memory.peak - found.memory.bare
    here = processor() if loadable.spec.device == "cpu" else loadable.spec.device
    return ServedVariant(precision, memory, proven=precision == REFERENCE or found.parity.device in (None, here))


def _unlike(ours: tuple[TensorSpec, ...], theirs: tuple[TensorSpec, ...]) -> str | None:
    """What differs between the tensors of two precisions, None for nothing."""
    known = {spec.name: spec for spec in theirs}
    if known.keys() != {spec.name for spec in ours}:
        return f"its tensors are {', '.join(spec.name for spec in ours)}, those of what serves {', '.join(known)}"
    for spec in ours:
        other = known[spec.name]
        if (spec.datatype, spec.shape, spec.batch_axis) != (other.datatype, other.shape, other.batch_axis):
            return f"{spec.name!r} is {spec.datatype} {list(spec.shape)}, and {other.datatype} {list(other.shape)} in what serves"
    return None
