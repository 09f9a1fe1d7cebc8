"""The helper process for big JSON, with a real child: right answers, and nothing lost, hung or left behind when it's killed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import psutil
import pytest
import uvloop

from server.edges.offload.json_worker import BodySink, JsonWorker
from server.errors import Draining, InvalidRequest, Overloaded, TidegateError, Unavailable
from server.messages import InferRequest, InferResponse, RequestedOutput
from server.protocol import json_codec
from server.protocol.encode import Encoded, Encoder
from server.protocol.head import Layouts
from server.protocol.reply import Reply
from server.tensors import DTYPES, Tensor, dtype_of
from tests.server.protocol.wire import assert_same

T = TypeVar("T")
BIG = np.random.default_rng(0).normal(size=(4, 20_000)).astype(np.float32)


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[JsonWorker]:
    worker = JsonWorker(**settings)
    try:
        await worker.start()
        yield worker
    finally:
        worker.close()


class Outcome:
    """An `on_done` to await; it counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def __call__(self, result: Any) -> None:
        self.calls += 1
        if not self._future.done():
            self._future.set_result(result)

    async def get(self) -> Any:
        return await asyncio.wait_for(asyncio.shield(self._future), 20)


async def decode(worker: JsonWorker, body: bytes, head_length: int | None = None) -> Any:
    outcome = Outcome()
    worker.decode(BodySink([body[:1000], body[1000:]]), "m", "1", outcome, head_length)
    return await outcome.get()


async def encode(worker: JsonWorker, response: InferResponse, reply: Reply) -> Any:
    outcome = Outcome()
    worker.encode(response, reply, outcome)
    return await outcome.get()


def json_body(array: Tensor = BIG, **members: Any) -> bytes:
    tensor = {"name": "x", "datatype": dtype_of(array).name, "shape": array.shape, "data": array}
    return orjson.dumps({**members, "inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)


def text(encoded: Encoded) -> bytes:
    whole = b"".join((encoded.head, *encoded.blobs))
    assert len(whole) == encoded.size
    return whole


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def memfds() -> int:
    """Descriptors and mappings of bodies in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:tidegate-json") + sum(
        "memfd:tidegate-json" in os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    )


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited 20 s"
        await asyncio.sleep(0.005)


async def test_requests_come_out_as_the_codec_decodes_them() -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z", "parameters": {"classification": 2}}]
    body = json_body(id='id "7"', parameters={"priority": 1, "binary_data_output": True}, outputs=outputs)
    layouts = Layouts()
    async with running(layouts=layouts) as worker:
        for _ in range(2):
            request, reply = await decode(worker, body)
            expected, expected_reply = json_codec.decode(body, "m", "1", layouts)
            assert isinstance(request, InferRequest)
            assert_same(request.inputs["x"], expected.inputs["x"])
            assert request.inputs["x"].flags.aligned
            assert request.layout is expected.layout
            assert (request.model, request.version, request.id) == ("m", "1", 'id "7"')
            assert request.outputs == expected.outputs == (RequestedOutput("y"), RequestedOutput("z", 2))
            assert dict(request.parameters) == dict(expected.parameters)
            assert (reply.id, reply.binary_default, dict(reply.binary)) == (
                expected_reply.id,
                expected_reply.binary_default,
                dict(expected_reply.binary),
            )


async def test_every_datatype_both_ways() -> None:
    arrays = {
        name: np.array([[b"a", b"", "ü".encode()]], object) if not kind.size else np.array([[0, 1, 1]]).astype(kind.numpy)
        for name, kind in DTYPES.items()
    }
    arrays["FP32"] = np.array([[np.nan, np.inf, 0.1]], np.float32)
    response = InferResponse("m", "1", "7", arrays, {"rows": 1})
    async with running() as worker:
        here = Encoder().encode(response, Reply("7"))
        there = await encode(worker, response, Reply("7"))
        assert text(there) == text(here)
        assert not there.binary
        document = text(here).replace(b'"outputs"', b'"inputs"').replace(b',"parameters":{"rows":1}', b"")
        request, _ = await decode(worker, document)
        for name, array in arrays.items():
            assert_same(request.inputs[name], array)


async def test_answers_that_are_binary_in_part() -> None:
    response = InferResponse("m", "1", outputs={"y": BIG, "z": BIG[:1], "s": np.array([b"\xff"], object)})
    reply = Reply("", True, {"y": False})
    async with running() as worker:
        there = await encode(worker, response, reply)
        here = Encoder().encode(response, reply)
        assert (bytes(there.head), there.binary, text(there)) == (here.head, True, text(here))


async def test_json_before_binary_values() -> None:
    head = json_body()[:-2] + b',{"name":"b","datatype":"INT64","shape":[2],"parameters":{"binary_data_size":16}}]}'
    body = head + np.array([7, 8]).tobytes()
    async with running() as worker:
        request, _ = await decode(worker, body, len(head))
        assert_same(request.inputs["x"], BIG)
        assert request.inputs["b"].tolist() == [7, 8]
        whole, _ = await decode(worker, json_body(), len(json_body()))
        assert_same(whole.inputs["x"], BIG)


async def test_errors_are_the_codecs_own() -> None:
    async with running() as worker:
        for body, kind, words in (
            (b"", InvalidRequest, "isn't valid JSON"),
            (b"{", InvalidRequest, "isn't valid JSON"),
            (b"[" * 1_000_000, InvalidRequest, "isn't valid JSON"),
            (b"[" * 1_000_000 + b"NaN", InvalidRequest, "nested too deep"),
            (json_body().replace(b"FP32", b"INT8"), InvalidRequest, "INT8 takes integers"),
            (
                b'{"inputs":[{"name":"x","datatype":"INT8","shape":[1],"parameters":{"shared_memory_region":"r"}}]}',
                InvalidRequest,
                "shared",
            ),
        ):
            error = await decode(worker, body)
            assert type(error) is kind
            assert words in str(error)
        error = await encode(worker, InferResponse("m", "1", outputs={"y": np.array([b"\xff"], object)}), Reply())
        assert isinstance(error, InvalidRequest)
        assert "aren't UTF-8" in str(error)
        request, _ = await decode(worker, json_body())
        assert_same(request.inputs["x"], BIG)
        assert worker.restarts == 0


async def test_many_at_once_each_get_their_own() -> None:
    async with running() as worker:

        async def one(number: int) -> None:
            array = np.full((1, 5000), number, np.int32)
            request, reply = await decode(worker, json_body(array, id=str(number)))
            assert reply.id == str(number)
            assert_same(request.inputs["x"], array)
            encoded = await encode(worker, InferResponse("m", "1", str(number), {"y": request.inputs["x"]}), reply)
            assert orjson.loads(text(encoded)) == {
                "id": str(number),
                "model_name": "m",
                "model_version": "1",
                "outputs": [{"name": "y", "datatype": "INT32", "shape": [1, 5000], "data": [number] * 5000}],
            }

        await asyncio.gather(*(one(number) for number in range(30)))


async def test_the_helper_is_killed_in_the_middle_and_the_next_one_succeeds() -> None:
    async with running() as worker:
        for _ in range(2):
            first, second = Outcome(), Outcome()
            pid = worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)  # so that it can't be done before it's killed
            worker.decode(BodySink([json_body()]), "m", "1", first)
            worker.decode(BodySink([json_body()]), "m", "1", second)
            os.kill(pid, signal.SIGKILL)
            error = await first.get()
            assert isinstance(error, Unavailable)
            assert "ended while it had this body" in str(error)
            request, _ = await second.get()
            assert_same(request.inputs["x"], BIG)
            assert worker.pid != pid
            assert not psutil.pid_exists(pid)
            assert (first.calls, second.calls) == (1, 1)
        assert worker.restarts == 2


async def test_the_helper_is_killed_while_idle() -> None:
    async with running() as worker:
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: worker.pid not in (pid, None))
        request, _ = await decode(worker, json_body())
        assert_same(request.inputs["x"], BIG)


async def test_a_dead_helper_that_nobody_noticed_costs_no_request() -> None:
    async with running() as worker:
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # Waiting here keeps the loop from turning, which would tell it.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        request, _ = await decode(worker, json_body())
        assert_same(request.inputs["x"], BIG)


async def test_signals_for_the_server_do_not_end_the_helper() -> None:
    async with running() as worker:
        pid = worker.pid
        assert pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        await decode(worker, json_body())
        assert worker.pid == pid
        assert worker.restarts == 0


async def test_one_that_takes_too_long_is_replaced() -> None:
    async with running() as worker:
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        worker._timeout = 0.1
        error = await decode(worker, json_body())
        assert isinstance(error, Unavailable)
        assert "longer than 0.1 s" in str(error)
        worker._timeout = 20.0
        request, _ = await decode(worker, json_body())
        assert_same(request.inputs["x"], BIG)


async def test_cancel() -> None:
    async with running() as worker:
        runs, waits, last = Outcome(), Outcome(), Outcome()
        first = worker.decode(BodySink([json_body()]), "m", "1", runs)
        second = worker.decode(BodySink([json_body()]), "m", "1", waits)
        worker.decode(BodySink([json_body()]), "m", "1", last)
        first.cancel()
        second.cancel()
        second.cancel()
        request, _ = await last.get()
        assert_same(request.inputs["x"], BIG)
        first.cancel()
        assert (runs.calls, waits.calls, last.calls) == (0, 0, 1)


async def test_the_queue_is_bounded() -> None:
    async with running(max_waiting=2) as worker:
        outcomes = [Outcome() for _ in range(3)]
        for outcome in outcomes:
            worker.decode(BodySink([json_body()]), "m", "1", outcome)
        before = open_files()
        with pytest.raises(Overloaded, match=r"json_worker\.max_waiting"):
            worker.decode(BodySink([json_body()]), "m", "1", Outcome())
        assert open_files() == before
        for outcome in outcomes:
            assert not isinstance(await outcome.get(), TidegateError)


async def test_it_starts_with_the_first_job_too() -> None:
    worker = JsonWorker()
    try:
        assert worker.pid is None
        request, _ = await decode(worker, json_body())
        assert_same(request.inputs["x"], BIG)
    finally:
        worker.close()


async def test_memory_goes_with_the_last_view() -> None:
    gc.collect()
    async with running() as worker:
        before = memfds()
        request, reply = await decode(worker, json_body())
        encoded = await encode(worker, InferResponse("m", "1", outputs={"y": request.inputs["x"]}), reply)
        part = request.inputs["x"][1:2, :5]
        assert memfds() > before
        del request, encoded
        assert_same(part, BIG[1:2, :5])
        del part
        gc.collect()
        assert memfds() == before


async def test_closing_leaves_nothing() -> None:
    warm = JsonWorker()  # the first one leaves the loop's own descriptors behind
    await warm.start()
    warm.close()
    before = open_files()
    worker = JsonWorker()
    await worker.start()
    pid = worker.pid
    assert pid is not None
    outcomes = [Outcome() for _ in range(3)]
    for outcome in outcomes:
        worker.decode(BodySink([json_body()]), "m", "1", outcome)
    worker.close()
    worker.close()
    assert not psutil.pid_exists(pid)
    assert worker.pid is None
    for outcome in outcomes:
        assert isinstance(await outcome.get(), Draining)
    with pytest.raises(Draining):
        worker.decode(BodySink([b"{}"]), "m", "1", Outcome())
    assert open_files() == before
    assert memfds() == 0


@pytest.fixture
def broken_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("broken_python")
async def test_a_helper_that_cannot_start_fails_what_waits_and_is_not_tried_for_ever() -> None:
    worker = JsonWorker()
    with pytest.raises(Unavailable, match="ended at its start"):
        await worker.start()
    outcomes = [Outcome() for _ in range(3)]
    for outcome in outcomes:
        worker.decode(BodySink([b"{}"]), "m", "1", outcome)
    for outcome in outcomes:
        assert isinstance(await outcome.get(), Unavailable)
    assert worker.pid is None
    worker.close()


async def test_no_python_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    worker = JsonWorker()
    with pytest.raises(Unavailable, match="didn't start"):
        await worker.start()
    assert isinstance(await decode(worker, b"{}"), Unavailable)
    worker.close()


PARENT = """
import asyncio
from server.edges.offload.json_worker import JsonWorker

async def main():
    worker = JsonWorker()
    await worker.start()
    print(worker.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may be there to reap an orphan
    except psutil.NoSuchProcess:
        return True


async def test_the_helper_ends_with_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    await parent.communicate()
    await until(lambda: gone(pid))


def test_uvloop_does_as_well() -> None:
    async def main() -> None:
        async with running() as worker:
            response = InferResponse("m", "1", outputs={"y": BIG})
            for _ in range(2):
                request, reply = await decode(worker, json_body())
                assert_same(request.inputs["x"], BIG)
                assert text(await encode(worker, response, reply)) == text(Encoder().encode(response, reply))
                outcome, pid = Outcome(), worker.pid
                assert pid is not None
                os.kill(pid, signal.SIGSTOP)
                worker.decode(BodySink([json_body()]), "m", "1", outcome)
                os.kill(pid, signal.SIGKILL)
                assert isinstance(await outcome.get(), Unavailable)
                assert not psutil.pid_exists(pid)
        del request
        gc.collect()
        assert memfds() == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_sink_gives_its_memory_back() -> None:
    gc.collect()
    before = memfds()
    sink = BodySink([b"abc"])
    sink.write(memoryview(b"de"))
    assert sink.size == 5
    assert memfds() == before + 1
    sink.close()
    sink.close()
    assert memfds() == before
    BodySink([b"x"])
    gc.collect()
    assert memfds() == before
