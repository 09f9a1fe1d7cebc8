"""The guard between real engines: a healthy variant raises no alarm, a bad one does, NaN never leaves where FP32 is finite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from server.engine.engine import Engine
from server.precision.drift import Admission, Verdict
from server.precision.guard.guard import Guard
from server.precision.guard.record import Blame, Cause
from server.tensors import Tensor
from tests.server.models import linear_model, linear_weights
from tests.server.precision.guard.engines import (
    POISON,
    Here,
    Said,
    Told,
    ask,
    ask_all,
    contagious,
    engines,
    noisy_linear,
    records_of,
    running,
    sometimes_nan,
)

RANDOM = np.random.default_rng(3)
ROW = np.ones((1, 8), np.float32)


def rows(count: int) -> list[Tensor]:
    return [RANDOM.standard_normal((1, 8), np.float32) for _ in range(count)]


def right(array: Tensor) -> Tensor:
    weight, bias = linear_weights()
    return array @ weight + bias


async def until(holds: Callable[[], object], engine: Engine) -> None:
    """Ask, with gaps between, until it holds."""
    async with asyncio.timeout(30):
        while not holds():
            await ask_all(engine, rows(8))
            await asyncio.sleep(0.002)


def guard_of(reference: Engine | None, said: Said | None = None, **more: object) -> tuple[Guard, Told, Here]:
    owner, here = Told(), Here(reference, "the reference isn't there")
    return Guard(said or Said(), here, records_of("int8"), owner, **more), owner, here  # type: ignore[arg-type]


async def test_a_healthy_variant_is_compared_and_raises_no_alarm(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (noisy_linear(tmp_path / "b.onnx", 1e-4), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, owner, _ = guard_of(fp32)
        guard.watch(int8)
        async with running(guard):
            await until(lambda: guard.counts.samples > 150, int8)
        record = guard.records["int8"]
        assert not owner.alarms
        assert record.clean
        assert record.cusum.differing <= 2
        assert record.figures()["cosine_mean"] > 0.999
        assert 0 <= record.figures()["divergence_mean"] < 1e-3


async def test_a_bad_variant_is_caught_once_with_its_figures(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (noisy_linear(tmp_path / "b.onnx", 1.0), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, owner, _ = guard_of(fp32)
        guard.watch(int8)
        async with running(guard):
            await until(lambda: owner.alarms, int8)
            await until(lambda: guard.counts.samples > owner.alarms[0].judgement.samples + 20, int8)
        (alarm,) = owner.alarms
        assert (alarm.precision, alarm.cause) == ("int8", Cause.DRIFT)
        assert alarm.judgement.statistic >= alarm.judgement.threshold
        assert alarm.judgement.samples <= 60
        assert alarm.figures["divergence_max"] > 0
        assert "int8 differs from FP32 in" in str(alarm)
        assert not guard.records["int8"].clean


async def test_rows_of_one_request_are_one_sample(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (linear_model(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, _, _ = guard_of(fp32)
        guard.watch(int8)
        await ask(int8, RANDOM.standard_normal((9, 8), np.float32))
        (sample,) = guard.waiting.take(10)
        assert sample.inputs["x"].shape == (1, 8)
        assert np.allclose(sample.outputs["y"], right(sample.inputs["x"]), atol=1e-5)
        guard.watch(fp32)
        assert guard.watched is None
        await ask(int8, ROW)
        await ask(fp32, ROW)
        assert not guard.waiting.take(10)


async def test_nan_in_one_input_of_many_is_answered_by_fp32_and_blamed_on_the_variant(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (sometimes_nan(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, owner, _ = guard_of(fp32, Said(sample=1e-9))
        guard.watch(int8)
        poison = ROW.copy()
        poison[0, 0] = POISON
        arrays = [*rows(500), poison, *rows(3)]
        came = await ask_all(int8, arrays)
        for array, answer in zip(arrays, came, strict=True):
            assert np.allclose(answer.outputs["y"], right(array), atol=1e-5)
        assert came[500].batch is not None
        assert came[500].batch.precision == "fp32"
        assert came[499].batch is not None
        assert came[499].batch.precision == "int8"
        assert [alarm.cause for alarm in owner.alarms] == [Cause.NOT_FINITE]
        assert guard.records["int8"].nonfinite[Blame.VARIANT] == 1
        assert not guard.busy


async def test_a_client_that_sends_nan_takes_no_variant_away(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (contagious(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, owner, _ = guard_of(fp32)
        guard.watch(int8)
        bad = [np.full((1, 8), value, np.float32) for value in (np.nan, np.inf)]
        huge = np.full((1, 8), 3e38, np.float32)  # finite, and FP32's answer isn't
        for evil in (*bad, huge):
            innocent = rows(3)
            async with running(guard):
                came = await ask_all(int8, [evil, *innocent])
            guard.watch(int8)
            assert not np.isfinite(came[0].outputs["y"]).all()
            for array, answer in zip(innocent, came[1:], strict=True):
                assert np.allclose(answer.outputs["y"], right(array), atol=1e-5)
        record = guard.records["int8"]
        assert not owner.alarms
        assert record.clean
        assert record.nonfinite[Blame.INPUT] == 3
        assert record.nonfinite[Blame.NEIGHBOUR] >= 3
        assert record.nonfinite[Blame.VARIANT] == 0


async def test_without_a_reference_it_pauses_and_nobody_waits(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (sometimes_nan(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, owner, here = guard_of(None)
        guard.watch(int8)
        poison = ROW.copy()
        poison[0, 0] = POISON
        async with running(guard):
            await until(lambda: guard.paused, int8)
            answer = await ask(int8, poison)
            assert np.isnan(answer.outputs["y"]).all()
            assert guard.paused == "the reference isn't there"
            assert guard.records["int8"].nonfinite[Blame.UNKNOWN] == 1
            assert not owner.alarms
            here.there = fp32
            await until(lambda: guard.counts.samples, int8)
            assert not guard.paused


async def test_a_reference_whose_lanes_are_gone_pauses_it(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (linear_model(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, _, _ = guard_of(fp32)
        guard.watch(int8)
        fp32.supervisor.down, fp32.supervisor.guarded = "its process died", True
        async with running(guard):
            await until(lambda: guard.paused, int8)
        assert guard.paused == "its process died"


async def test_a_candidate_is_admitted_or_refused_on_shadowed_traffic(tmp_path: Path) -> None:
    fp32_path = linear_model(tmp_path / "a.onnx")
    for noise, verdict in ((0.0, Verdict.ADMITTED), (1.0, Verdict.REFUSED)):
        async with engines((fp32_path, "fp32"), (noisy_linear(tmp_path / "b.onnx", noise), "int8")) as (fp32, int8):
            guard, owner, _ = guard_of(fp32)
            record = guard.records["int8"]
            record.admission = Admission(record.rates)
            guard.candidate = int8
            guard.watch(fp32)
            async with running(guard):
                await until(partial(bool, owner.verdicts), fp32)
            assert owner.verdicts == [verdict]
            assert guard.counts.admissions[verdict] == 1
            assert not owner.alarms
            guard.candidate = None
            guard.watch(fp32)
            assert fp32.tap is None


async def test_kept_answers_are_part_of_a_drain(tmp_path: Path) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (sometimes_nan(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, _, _ = guard_of(fp32)
        guard.watch(int8)
        poison = ROW.copy()
        poison[0, 0] = POISON
        asked = asyncio.ensure_future(ask(int8, poison))
        await asyncio.sleep(0)
        await int8.drain()
        assert asked.done()
        assert np.isfinite(asked.result().outputs["y"]).all()


@pytest.mark.parametrize("budget", [0.02, 0.05])
async def test_the_budget_of_device_time_wins(tmp_path: Path, budget: float) -> None:
    paths = (linear_model(tmp_path / "a.onnx"), "fp32"), (linear_model(tmp_path / "b.onnx"), "int8")
    async with engines(*paths) as (fp32, int8):
        guard, _, _ = guard_of(fp32, Said(budget=budget))
        guard.watch(int8)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with running(guard):
            await until(lambda: loop.time() - begun > 0.5, int8)
        took = loop.time() - begun
        assert guard.counts.samples > 0
        longest = 0.05  # one replay more than it may, at the most
        assert guard.pacer.seconds <= budget * took + longest
