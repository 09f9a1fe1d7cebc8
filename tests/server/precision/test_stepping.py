"""The owner of the ladders, on a clock of its own: what it sees, when it acts, what it leaves alone, and what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.control.precision.models import FIRST_WAIT, second_of_day
from server.control.precision.stepping import Clocks, Stepping
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.errors import InvalidRequest, ModelDefect, NotFound, Superseded
from server.logs import Journal
from server.messages import ModelKey
from server.metrics.catalogue import CATALOGUE
from server.metrics.figures import Figures
from server.metrics.recorder import Recorder
from server.precision.variants import Event
from server.repository.model_config import ModelConfig
from server.router.table import ServedVariant, ServedVersion, ServingTable, State

SECONDS: Mapping[str, Mapping[int, float]] = {
    "fp32": {1: 0.006, 8: 0.034, 64: 0.258},
    "fp16": {1: 0.002, 8: 0.009, 64: 0.065},
    "int8": {1: 0.0015, 8: 0.005, 64: 0.033},
}
CONFIG: Mapping[str, Any] = {
    "batching": {"latency_objective": 0.05},
    "precision": {"policy": "ladder", "ladder": ["fp32", "fp16", "int8"]},
}


class SilentJournal(Journal):
    """Keeps lines in place of writing them."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def lifecycle(self, event: str, *, level: str = "info", **facts: object) -> None:
        self.lines.append({"event": event, "level": level, **facts})


class FakeEngine:
    """What stepping reads of an engine."""

    def __init__(self, precision: str, seconds: Mapping[int, float]) -> None:
        self.key = ModelKey("m", "1", precision)
        self.batcher = SimpleNamespace(costs=CostModel(seconds))
        self.figures = Figures(self.key)
        self.lanes = [object()]
        self.max_rows = 64
        self.offered_rows = 0


class Play:
    """A model on a stage, with a clock: `seconds` pass at a rate, one look each."""

    def __init__(self, home: str = "fp32", **config: Any) -> None:
        self.now, self.wall = 1000.0, 0.0
        self.frozen: set[str] = set()
        self.chosen_ = cast("str | None", None)
        self.busy = False
        self.switches: list[tuple[str | None, str, str]] = []
        self.fault: Exception | None = None
        self.config = ModelConfig.model_validate({**CONFIG, **config})
        self.table, self.recorder, self.journal = ServingTable(), Recorder(), SilentJournal()
        self.home = home
        self.serve(home)
        self.stepping = Stepping(self.table, self, self.recorder, self.journal, Clocks(lambda: self.now, lambda: self.wall))

    def serve(self, precision: str) -> None:
        self.engine = FakeEngine(precision, SECONDS[precision])
        engine = cast(Engine, self.engine)
        served = ServedVersion("m", "1", State.READY, engine=engine, platform="emulated", config=self.config)
        served.expected, served.offered = dict(SECONDS), (self.home, *(name for name in SECONDS if name != self.home))
        served.variants = {name: ServedVariant(name, proven=True) for name in SECONDS}
        self.table.put(served)

    def chosen(self, name: str) -> str | None:
        return self.chosen_

    def switching(self, name: str) -> bool:
        return self.busy

    async def switch(self, name: str, precision: str | None, who: str, why: str) -> None:
        self.chosen_ = precision
        await self.step(name, precision, who, why)

    async def step(self, name: str, precision: str | None, who: str, why: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.switches.append((precision, who, why))
        self.serve(precision or self.home)

    async def seconds(self, seconds: int, rate: float) -> list[str]:
        """What was switched to meanwhile."""
        before = len(self.switches)
        for _ in range(seconds):
            self.now += 1.0
            self.wall += 1.0
            self.engine.offered_rows += round(rate)
            self.stepping.look()
            for _ in range(3):
                await asyncio.sleep(0)
        return [str(precision) for precision, _, _ in self.switches[before:]]

    def told(self) -> dict[str, Any]:
        told = self.stepping.told("m")
        assert told is not None
        return told

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        return {tuple(labels): value for found, labels, value in self.recorder.read(CATALOGUE) if found == name}


async def test_it_steps_down_under_load_and_up_again() -> None:
    play = Play()
    assert await play.seconds(20, 100) == []
    assert await play.seconds(20, 500) == ["fp16"]
    assert await play.seconds(20, 1200) == ["int8"]
    assert await play.seconds(60, 100) == ["fp32"]
    assert [who for _, who, _ in play.switches] == ["ladder"] * 3
    assert play.switches[0][2].startswith("objective_threatened; ")
    assert "utilization fp32 " in play.switches[0][2]
    assert play.switches[2][2].startswith("room_again; 100 rows/s asked for; utilization fp32 0.")
    assert play.metric("tidegate_ladder_steps_total") == {
        ("m", "fp16", "objective_threatened"): 1.0,
        ("m", "int8", "objective_threatened"): 1.0,
        ("m", "fp32", "room_again"): 1.0,
    }
    assert play.metric("tidegate_ladder_utilization")["m", "fp32"] == pytest.approx(100 / 227, rel=0.1)


async def test_an_operators_choice_holds_and_what_would_be_is_shown() -> None:
    play = Play()
    play.chosen_ = "fp32"
    assert await play.seconds(20, 500) == []
    assert play.told()["next"] == {"precision": "fp16", "reason": "objective_threatened", "acts": False}
    play.chosen_ = None
    assert await play.seconds(1, 500) == ["fp16"]


async def test_nothing_is_decided_while_the_model_is_switched_or_frozen() -> None:
    play = Play()
    play.busy = True
    assert await play.seconds(10, 500) == []
    play.busy, play.frozen = False, {"m"}
    assert await play.seconds(10, 500) == []
    assert play.told()["next"]["reason"] == "frozen_by_experiment"
    play.frozen.clear()
    assert await play.seconds(1, 500) == ["fp16"]


async def test_what_others_switched_is_taken_up_and_cools_down() -> None:
    play = Play()
    await play.seconds(10, 100)
    play.serve("int8")
    assert await play.seconds(29, 100) == []
    assert play.told()["next"]["reason"] in ("cooling_down", "room_not_for_long")
    assert await play.seconds(5, 100) == ["fp32"]


async def test_a_step_that_fails_is_not_tried_each_second() -> None:
    play = Play(precision={"policy": "ladder", "ladder": ["fp32", "int8"]})
    play.fault = ModelDefect("no such file")
    assert await play.seconds(10, 500) == []
    (line,) = play.journal.lines
    assert line == {
        **{"event": "precision_step_failed", "level": "warning", "model": "m", "precision": "int8"},
        **{"reason": "no such file", "again_in_s": FIRST_WAIT},
    }
    rung = next(each for each in play.told()["rungs"] if each["precision"] == "int8")
    assert rung["left_out"] == "failed"
    assert rung["failed"]["why"] == "no such file"
    await play.seconds(int(FIRST_WAIT), 500)
    assert [line["again_in_s"] for line in play.journal.lines] == [FIRST_WAIT, 2 * FIRST_WAIT]
    play.fault = None
    assert await play.seconds(int(2 * FIRST_WAIT), 500) == ["int8"]
    assert "failed" not in str(play.told()["rungs"])
    assert play.metric("tidegate_ladder_steps_total")["m", "int8", "failed"] == 2.0


async def test_one_that_is_superseded_is_no_failure() -> None:
    play = Play()
    play.fault = Superseded("another switch")
    await play.seconds(10, 500)
    assert play.journal.lines == []
    play.fault = None
    assert await play.seconds(1, 500) == ["fp16"]


async def test_the_schedule_follows_the_zones_clock() -> None:
    said = {"policy": "schedule", "schedule": ["08:00 int8", "20:00 fp32"], "time_zone": "Europe/Berlin"}
    play = Play(precision=said)
    play.wall = 6 * 3600 + 3590  # 07:59:50 in Berlin, on a winter's day
    assert await play.seconds(9, 10) == []
    assert await play.seconds(2, 10) == ["int8"]
    assert play.switches[-1][1] == "schedule"
    assert play.told()["schedule"] == ["08:00 int8", "20:00 fp32"]
    play.wall = 19 * 3600
    assert await play.seconds(2, 10) == ["fp32"]


@pytest.mark.parametrize(
    ("zone", "wall", "second"),
    [("UTC", 86400 * 3 + 61, 61), ("Europe/Berlin", 0, 3600), ("Asia/Kolkata", 0, 5 * 3600 + 1800), ("Europe/Berlin", 182 * 86400, 7200)],
)
def test_the_second_of_the_day(zone: str, wall: float, second: float) -> None:
    """The last is summer: in 1970 Berlin had none, so it's the next one that has."""
    wall = wall if second != 7200 else 1_750_000_000 - 1_750_000_000 % 86400
    assert second_of_day(wall, zone) == second


async def test_fixed_is_left_alone_and_what_would_be_is_shown() -> None:
    play = Play("int8", precision={"active": "int8"})
    await play.seconds(3, 10)
    play.serve("fp32")  # the guard's doing, or an operator's
    assert await play.seconds(5, 5000) == []
    assert play.told()["policy"] == "fixed"


async def test_what_answers_and_may_not_any_more_is_stepped_away_from() -> None:
    play = Play()
    await play.seconds(3, 100)
    active = play.table.versions("m")[0].variants["fp32"]
    for event in (Event.LOAD, Event.READY, Event.ACTIVATE, Event.FAIL):
        active.step(event, 0.0, "its lanes are lost")
    play.frozen = {"m"}  # also while an experiment runs
    assert await play.seconds(1, 100) == ["fp16"]
    assert play.switches[0][2].startswith("active_barred")


@pytest.mark.parametrize(("down", "found"), [(True, "int8"), (False, "fp32")])
async def test_a_step_that_is_asked_for(down: bool, found: str) -> None:
    play = Play("fp16")
    await play.seconds(3, 10)
    await play.stepping.step("m", "anna", "alert InferenceLatency", down=down)
    assert (play.switches, play.chosen_) == ([(found, "anna", "alert InferenceLatency")], None)
    assert play.metric("tidegate_ladder_steps_total") == {("m", found, "asked_for"): 1.0}


async def test_without_a_ladder_a_step_is_a_choice() -> None:
    play = Play(precision={})
    await play.stepping.step("m", "anna", "because", down=True)
    assert (play.switches, play.chosen_) == ([("fp16", "anna", "because")], "fp16")


async def test_where_there_is_nothing_to_step_to() -> None:
    play = Play(precision={"policy": "ladder", "ladder": ["fp32", "fp16"]})
    play.serve("fp16")
    with pytest.raises(InvalidRequest, match="model 'm' has no precision below fp16 to step to"):
        await play.stepping.step("m", "anna", "", down=True)
    with pytest.raises(NotFound):
        await play.stepping.step("n", "anna", "", down=True)


async def test_a_model_that_goes_is_forgotten() -> None:
    play = Play()
    await play.seconds(3, 10)
    play.table.remove("m", "1")
    play.stepping.look()
    assert play.stepping.told("m") is None


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(5, 60), st.sampled_from([0, 50, 100, 140, 300, 600, 900, 1500, 3000])), min_size=1, max_size=6))
def test_at_constant_rates_there_is_one_step_at_the_most(plan: list[tuple[int, int]]) -> None:
    """After the first seconds of each rate, in which the old one is still in the figures, one step and its correction at the most."""

    async def played() -> None:
        play = Play()
        for seconds, rate in plan:
            await play.seconds(12, rate)
            assert len(await play.seconds(seconds + 40, rate)) <= 1
            assert await play.seconds(30, rate) == []

    asyncio.run(played())
