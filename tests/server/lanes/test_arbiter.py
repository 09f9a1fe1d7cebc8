"""Sharing a device under simulated time: slots are never oversold, nobody starves, time is shared, a quiet neighbour hardly notices."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.lanes.arbiter import ACTIVE, Arbiter, Device, Share


@dataclass
class Model:
    """`lanes` lanes of `width` slots, runs of `seconds`; arrivals as given, or always something waiting."""

    seconds: float
    lanes: int = 2
    width: float = 1.0
    arrivals: deque[float] | None = None
    share: Share = field(init=False)
    free: int = field(init=False)
    queue: deque[float] = field(default_factory=deque)
    waits: list[float] = field(default_factory=list)
    busy: float = 0.0
    runs: int = 0


class Simulation:
    """Models on one device, and a scheduler for each as the engine's: it takes, starts, gives, and is called back."""

    def __init__(self, device: Device, models: Sequence[Model]) -> None:
        self.device, self.models, self.now = device, models, 0.0
        self.events: list[tuple[float, int, str, Model, float]] = []
        self.numbers = count()
        self.most_used = 0.0
        for model in models:
            model.free = model.lanes
            model.share = device.join(model.width, lambda model=model: self.granted(model))  # type: ignore[misc]
            for at in model.arrivals or ():
                self.push(at, "arrive", model, at)

    def push(self, at: float, what: str, model: Model, value: float) -> None:
        heapq.heappush(self.events, (at, next(self.numbers), what, model, value))

    def waiting(self, model: Model) -> bool:
        return model.arrivals is None or bool(model.queue)

    def granted(self, model: Model) -> bool:
        if not model.free or not self.waiting(model):
            return False
        self.start(model)
        self.push(self.now, "turn", model, 0.0)
        return True

    def start(self, model: Model) -> None:
        model.free -= 1
        model.runs += 1
        if model.queue:
            model.waits.append(self.now - model.queue.popleft() + model.seconds)
        self.push(self.now + model.seconds, "end", model, model.seconds)
        self.most_used = max(self.most_used, sum(each.share.running * each.share.width for each in self.models))

    def turn(self, model: Model) -> None:
        for _ in range(model.free):
            if not self.waiting(model) or not model.share.take(self.now):
                return
            self.start(model)

    def run(self, until: float) -> Simulation:
        for model in self.models:
            self.turn(model)
        while self.events and self.events[0][0] <= until:
            self.now, _, what, model, value = heapq.heappop(self.events)
            if what == "arrive":
                model.queue.append(value)
            elif what == "end":
                model.free += 1
                model.busy += value * model.width
                model.share.give(value, self.now, more=self.waiting(model))
            self.turn(model)
        return self


models_strategy = st.lists(
    st.builds(Model, seconds=st.floats(0.005, 0.1), lanes=st.integers(1, 4), width=st.sampled_from([1.0, 2.0, 4.0])), min_size=2, max_size=4
)


@settings(max_examples=50)
@given(models_strategy, st.sampled_from([1.0, 2.0, 4.0]), st.booleans())
def test_slots_are_never_oversold_and_nobody_starves(models: list[Model], slots: float, exclusive: bool) -> None:
    simulation = Simulation(Device(slots, exclusive=exclusive), models).run(8.0)
    assert simulation.most_used <= slots + 1e-6
    assert all(model.runs > 2 for model in models)


@settings(max_examples=50)
@given(models_strategy)
def test_a_device_is_never_idle_while_somebody_waits(models: list[Model]) -> None:
    simulation = Simulation(Device(1.0), models).run(5.0)
    assert sum(model.busy for model in models) >= 0.95 * simulation.now


@settings(max_examples=50)
@given(st.floats(0.005, 0.1), st.floats(0.005, 0.1))
def test_two_that_saturate_get_half_each(one: float, other: float) -> None:
    models = [Model(one, lanes=1), Model(other, lanes=1)]
    Simulation(Device(1.0), models).run(30.0)
    share = models[0].busy / (models[0].busy + models[1].busy)
    assert 0.42 <= share <= 0.58


@pytest.mark.parametrize("slots", [2.0, 4.0])
@pytest.mark.parametrize("long", [0.005, 0.02, 0.1, 0.5])
def test_a_quiet_neighbours_p99(slots: float, long: float) -> None:
    random, at, arrivals = Random(1), 0.0, deque[float]()
    while at < 60.0:
        at += random.uniform(0.02, 0.2)
        arrivals.append(at)
    quiet, saturating = Model(0.01, lanes=2, arrivals=arrivals), Model(long, lanes=int(slots))
    Simulation(Device(slots), [quiet, saturating]).run(60.0)
    waits = sorted(quiet.waits[1:])  # the first meets a device that nobody knew it needs
    assert waits[int(0.99 * len(waits))] <= 1.5 * quiet.seconds
    assert saturating.busy >= 60.0 * (slots - 1) * 0.9


def test_what_is_kept_for_a_neighbour_is_used_when_it_has_gone_quiet() -> None:
    quiet = Model(0.01, arrivals=deque([0.5]))
    saturating = Model(0.1)
    Simulation(Device(2.0), [quiet, saturating]).run(60.0)
    assert quiet.waits == [pytest.approx(0.11, abs=0.1)]
    assert saturating.busy >= 2 * 60.0 - ACTIVE - 1.0


def test_no_slots_are_kept_for_one_that_yields() -> None:
    device = Device(2.0)
    busy, quiet = device.join(1.0, lambda: True), device.join(1.0, lambda: True)
    for share, seconds in ((quiet, 0.001), (busy, 0.1)):
        assert share.take(0.0)
        share.give(seconds, 0.0, more=False)
    assert not device.quiet(busy, 0.1)
    assert busy.take(0.1)
    assert not busy.take(0.1), "the other slot is the quiet neighbour's"
    quiet.yields = True
    assert device.quiet(busy, 0.1)
    device.dispatch(0.1)
    assert busy.running == 2
    assert not quiet.idle()
    busy.give(0.1, 0.2, more=False)
    busy.give(0.1, 0.2, more=False)
    assert quiet.idle()


def test_a_gpu_runs_one_model_at_a_time_in_all_its_lanes() -> None:
    device = Arbiter(8).device("cuda:0")
    models = [Model(0.02, lanes=2, width=0.5), Model(0.02, lanes=2, width=0.5)]
    simulation = Simulation(device, models)
    together = 0

    def watch(model: Model) -> bool:
        nonlocal together
        started = simulation.granted(model)
        together += all(each.share.running for each in models) and started
        return started

    for model in models:
        model.share.on_turn = lambda model=model: watch(model)  # type: ignore[misc]
    simulation.run(10.0)
    assert not together
    assert simulation.most_used == pytest.approx(1.0)


def test_one_alone_is_never_refused_and_who_joins_counts_its_runs() -> None:
    device = Arbiter(2).device("cpu")
    first = device.join(1.0, lambda: False)
    assert [first.take(0.0) for _ in range(5)] == [True] * 5
    second = device.join(1.0, lambda: False)
    assert not second.take(0.0)
    for _ in range(4):
        first.give(0.01, 0.01, more=False)
    assert second.take(0.02)


def test_who_leaves_makes_room() -> None:
    device = Device(1.0)
    started: list[str] = []
    first = device.join(1.0, lambda: False)
    second = device.join(1.0, lambda: not started.append("second"))  # type: ignore[func-returns-value]
    assert first.take(0.0)
    assert not second.take(0.0)
    first.leave(1.0)
    assert started == ["second"]
    assert device.alone


def test_devices_are_shared_by_name() -> None:
    arbiter = Arbiter(4)
    assert arbiter.device("cpu") is arbiter.device("cpu")
    assert arbiter.device("cpu") is not arbiter.device("cuda:0")
    assert arbiter.device("cpu").slots == 4
