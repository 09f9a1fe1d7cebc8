"""Which variants stay loaded, for how much memory, and which of them answers a request that asks for one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.app import App
from server.errors import InvalidRequest, ModelDefect
from server.precision.variants import LOADED, State
from server.router.table import ServedVersion
from tests.server.models import linear_model, variant, write_manifest
from tests.server.running import Answer, infer_json, running, wire
from tests.server.test_precision_switch import PRECISIONS, ROWS, place_net, told
from tests.server.test_sequences import STATE, adder_model, x


def served(app: App, name: str = "net") -> ServedVersion:
    found = app.table.version(name, "1")
    assert found is not None
    return found


def states(app: App) -> dict[str, str]:
    return {name: str(each.state) for name, each in served(app).variants.items()}


async def until(app: App, **wanted: str) -> None:
    async with asyncio.timeout(20):
        while not wanted.items() <= states(app).items():
            await asyncio.sleep(0.001)


async def ask(app: App, **parameters: Any) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(infer_json("net", ROWS, parameters=parameters))


async def test_nothing_but_what_answers_stays_loaded(tmp_path: Path) -> None:
    async with running(place_net(tmp_path)) as app:
        assert states(app) == {"fp32": "active", "fp16": "absent", "int8": "absent"}
        await app.control.switch("net", "int8")
        await until(app, fp32="evicted", int8="active", fp16="absent")
        assert served(app).variants["fp32"].engine is None


async def test_what_is_kept_is_swapped_without_a_load(tmp_path: Path) -> None:
    async with running(place_net(tmp_path, "precision: {keep: 1}")) as app:
        first = served(app).engine
        await app.control.switch("net", "int8")
        await until(app, fp32="warm")
        await app.control.switch("net", "fp32")
        assert served(app).engine is first
        assert told(await ask(app)) == "fp32"
        await until(app, int8="warm")
        await app.control.switch("net", "fp16")
        await until(app, fp32="warm", int8="evicted", fp16="active")  # the one that was used longest ago


async def test_memory_is_bounded_and_the_longest_unused_goes(tmp_path: Path) -> None:
    size = 264  # of each file, which is what a lane in the server's process counts as
    async with running(place_net(tmp_path, "precision: {keep: 8}"), limits={"variant_memory": 2 * size}) as app:
        for name, held in (("fp16", {"fp32": "warm"}), ("int8", {"fp32": "evicted", "fp16": "warm"}), ("fp32", {"fp16": "evicted"})):
            await app.control.switch("net", name)
            await until(app, **{name: "active"}, **held)
    async with running(place_net(tmp_path), limits={"variant_memory": size}) as app:
        with pytest.raises(ModelDefect, match=r"int8 takes 264 bytes of cpu, 264 more than limits.variant_memory \(264\) has left"):
            await app.control.switch("net", "int8")
        assert states(app)["int8"] == "failed"
        assert told(await ask(app)) == "fp32"
    async with running(place_net(tmp_path), limits={"variant_memory": size - 1}) as app:
        assert [row.state for row in app.control.index()] == ["UNAVAILABLE"]


async def test_what_is_held_stays(tmp_path: Path) -> None:
    async with running(place_net(tmp_path)) as app:
        await app.control.precisions.hold("net", "1", "int8")
        await app.control.precisions.hold("net", "1", "int8")
        await app.control.switch("net", "fp16")
        await until(app, fp32="evicted", int8="warm")
        app.control.precisions.release("net", "1", "int8")
        assert states(app)["int8"] == "warm"
        app.control.precisions.release("net", "1", "int8")
        assert states(app)["int8"] == "evicted"
        with pytest.raises(InvalidRequest, match="has no precision 'int4'"):
            await app.control.precisions.hold("net", "1", "int4")


async def test_a_request_may_ask_for_a_precision(tmp_path: Path) -> None:
    async with running(place_net(tmp_path, "precision: {keep: 1}")) as app:
        await app.control.switch("net", "int8")
        await until(app, fp32="warm")
        for name in ("fp32", "int8"):
            answer = await ask(app, precision=name, explain=True)
            said = answer.json()["parameters"]
            assert (told(answer), said["precision"], said["route_reason"]) == (name, name, "precision")
        missing = await ask(app, precision="fp16")
        assert (missing.status, "can't answer in fp16 now, it's absent" in missing.json()["error"]) == (503, True)
        for name in ("fp16", "fp61"):
            answer = await ask(app, precision=name, precision_fallback=True, explain=True)
            assert (told(answer), answer.json()["parameters"]["route_reason"]) == ("int8", "precision_fallback")
        unknown = await ask(app, precision="fp61")
        assert (unknown.status, "has fp32, fp16, int8, not 'fp61'; did you mean 'fp16'?" in unknown.json()["error"]) == (400, True)
        assert (await ask(app, precision=8)).json() == {"error": "parameter 'precision' must be a string; got 8"}
        assert (await ask(app, precision="int8", precision_fallback=1)).status == 400
        counts = {each.key.precision: sum(each.duration[:-1]) for each in app.recorder.of("net", "1")}
        assert counts == {"fp32": 1, "int8": 3}


async def test_counts_go_on_where_a_variant_comes_back(tmp_path: Path) -> None:
    async with running(place_net(tmp_path)) as app:
        counts = []
        for name in ("fp32", "int8", "fp32"):
            await app.control.switch("net", name)
            assert told(await ask(app)) == name
            counts.append({each.key.precision: sum(each.duration[:-1]) for each in app.recorder.of("net", "1")})
        assert counts == [{"fp32": 1}, {"fp32": 1, "int8": 1}, {"fp32": 2, "int8": 1}]


async def test_sequences_go_on_over_a_switch(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    files = {name: adder_model(folder / f"model.{name}.onnx") for name in ("fp32", "int8")}
    ours, theirs = {"x": ([-1, 2], 0), "sum": ([2, -1], None)}, {"y": ([-1, 2], 0), "sums": ([2, -1], None)}
    tensors: dict[str, Any] = {
        side: [{"name": name, "datatype": "FP32", "shape": shape, "batch_axis": axis} for name, (shape, axis) in rows.items()]
        for side, rows in (("inputs", ours), ("outputs", theirs))
    }
    write_manifest(folder, "net", [variant(file, name, target="cpu", **tensors) for name, file in files.items()])
    (tmp_path / "net" / "model.yaml").write_text(STATE)
    async with running(tmp_path) as app, wire(app) as connection:

        async def add(number: float, **more: Any) -> Any:
            return await connection.ask(infer_json("net", x(number), parameters={"sequence_id": 7, **more}))

        assert (await add(1, sequence_start=True)).json()["outputs"][0]["data"] == [1, 1]
        await app.control.switch("net", "int8")
        answer = await add(2, explain=True)
        assert (answer.json()["outputs"][0]["data"], answer.json()["parameters"]["precision"]) == ([3, 3], "int8")
        refused = await add(2, precision="fp32")
        assert refused.status in (400, 503)


async def test_answers_of_one_precision_are_not_the_others(tmp_path: Path) -> None:
    async with running(place_net(tmp_path, "{cache: {max_bytes: 1MiB}, precision: {keep: 1}}")) as app:
        for name in ("fp32", "int8", "fp32", "int8"):
            await app.control.switch("net", name)
            assert [told(await ask(app)) for _ in range(2)] == [name] * 2
        front: Any = served(app).front
        assert (front.answers.misses, front.answers.hits) == (2, 6)


async def test_a_variant_of_other_tensors_is_not_switched_to(tmp_path: Path) -> None:
    place_net(tmp_path)
    folder = tmp_path / "net" / "1"
    wide = linear_model(folder / "model.int8.onnx", inputs=16)
    entry = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 16], "batch_axis": 0}]}
    write_manifest(folder, "net", [variant(folder / "model.fp32.onnx", "fp32"), variant(wide, "int8", target="cpu", **entry)])
    async with running(tmp_path) as app:
        with pytest.raises(ModelDefect, match="a client of one precision couldn't be answered by the other"):
            await app.control.switch("net", "int8")
        assert told(await ask(app)) == "fp32"


async def test_a_lane_that_is_killed_in_the_middle_of_a_switch(tmp_path: Path) -> None:
    """First that which loads, then that which serves: the old one goes on, or comes back, and no request fails."""
    place_net(tmp_path, "lanes: {kind: process, count: 1, threads: 1}")
    async with running(tmp_path) as app:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        switching = asyncio.ensure_future(app.control.switch("net", "int8"))
        async with asyncio.timeout(20):
            while not (fresh := {child.pid for child in psutil.Process().children(recursive=True)} - before):
                await asyncio.sleep(0.001)
        for pid in fresh:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(ModelDefect, match="still serves in fp32: it can't in int8"):
            await switching
        assert states(app)["int8"] == "failed"
        assert told(await ask(app)) == "fp32"
        switching = asyncio.ensure_future(app.control.switch("net", "int8"))
        lane: Any = served(app).engine
        os.kill(lane.lanes[0].pid, signal.SIGKILL)
        answers = [told(await ask(app)) for _ in range(3)]
        await switching
        assert set(answers) <= {"fp32", "int8"}
        assert told(await ask(app)) == "int8"


KINDS = ["switch", "step", "hold", "release", "pin", "unpin", "clear"]
OPERATIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(list(PRECISIONS))), max_size=10)


@given(OPERATIONS, st.integers(0, 2))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_one_variant_answers(tmp_path: Path, operations: list[tuple[str, str]], keep: int) -> None:
    """What is loaded has an engine and nothing else has; the active one, and only that, answers; no more stays warm than should."""

    async def play() -> None:
        async with running(place_net(tmp_path, f"precision: {{keep: {keep}}}")) as app:
            for operation, name in operations:
                with suppress(InvalidRequest, ModelDefect):
                    await act(app, operation, name)
                variants = served(app).variants
                active = [each.precision for each in variants.values() if each.state is State.ACTIVE]
                assert [told(await ask(app))] == active
                for each in variants.values():
                    assert (each.engine is not None) == (each.state in LOADED), (each.precision, each.state)
            async with asyncio.timeout(20):
                while any(each.state is State.DRAINING for each in served(app).variants.values()):
                    await asyncio.sleep(0.001)
            warm = [each for each in served(app).variants.values() if each.state is State.WARM and not each.holders]
            assert len(warm) <= keep

    asyncio.run(play())


async def act(app: App, operation: str, name: str) -> None:
    control = app.control
    match operation:
        case "switch":
            await control.switch("net", name)
        case "step":
            await control.step("net", name, "test", "to see")
        case "hold":
            await control.precisions.hold("net", "1", name)
        case "release":
            control.precisions.release("net", "1", name)
        case "pin":
            await control.pin_out("net", name, "test", "to see")
        case "unpin":
            await control.unpin("net", name, "test")
        case _:
            await control.switch("net", None)


@pytest.mark.parametrize("kind", ["thread", "process", "inline"])
async def test_twenty_switches_under_load(tmp_path: Path, kind: str) -> None:
    place_net(tmp_path, f"{{lanes: {{kind: {kind}, count: 1, threads: 1}}, precision: {{keep: 2}}}}")
    seen: list[str] = []
    done = asyncio.Event()

    async def client(app: App) -> None:
        async with wire(app) as connection:
            while not done.is_set():
                seen.append(told(await connection.ask(infer_json("net", ROWS))))

    async with running(tmp_path) as app:
        clients = [asyncio.create_task(client(app)) for _ in range(4)]
        draw = random.Random(7)
        for _ in range(21):
            await app.control.switch("net", draw.choice([name for name in PRECISIONS if states(app)[name] != "active"]))
            before = len(seen)
            async with asyncio.timeout(20):
                while len(seen) < before + 6:
                    await asyncio.sleep(0.001)
        done.set()
        await asyncio.gather(*clients)
    assert "" not in seen
    assert set(seen) == set(PRECISIONS)
