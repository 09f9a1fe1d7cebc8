"""Going down in full swing: every request that was taken is answered, the rest is refused, and nothing holds the server."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.edges.grpc.wire import SERVICE, request
from tests.server.edges.test_drain import answered
from tests.server.models import identity_model
from tests.server.running import running
from tests.server.test_serve import serving

BODY = request("identity", {"x": np.ones((1, 16), np.float32)}, id="7")
CLIENTS = 8


@pytest.fixture
def models(tmp_path: Path) -> Path:
    identity_model(tmp_path / "identity" / "1" / "model.onnx")
    return tmp_path


async def ask_until_refused(address: str, told: Callable[[int], Any]) -> tuple[int, str]:
    """Call after call on one connection; how many were answered, and the code of the first that wasn't."""
    count = 0
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}ModelInfer")
        try:
            while True:
                assert len(await call(BODY)) > 64
                count += 1
                told(count)
        except grpc.aio.AioRpcError as error:
            return count, error.code().name


async def test_all_that_was_taken_isanswered(models: Path) -> None:
    async with running(models, grpc_port=0) as app:
        drained: list[asyncio.Future[None]] = []

        def told(count: int) -> None:
            if count == 50 and not drained:
                drained.append(asyncio.ensure_future(app.grpc.drain(10.0)))

        found = await asyncio.gather(*(ask_until_refused(app.addresses.grpc, told) for _ in range(CLIENTS)))
        await drained[0]
        assert answered(app) == sum(count for count, _ in found)
        # gRPC's core cancels a call that crosses with its GOAWAY, before our code sees it.
        assert {code for _, code in found} <= {"UNAVAILABLE", "CANCELLED"}


def test_sigterm_under_load(models: Path) -> None:
    with serving(models, TIDEGATE_DRAIN_DELAY="100ms", TIDEGATE_DRAIN_TIMEOUT="60s") as (process, line):
        sent: list[Any] = []

        def told(count: int) -> None:
            if count == 50 and not sent:
                sent.append(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)  # once: a second one would end the waits

        async def everyone() -> list[tuple[int, str]]:
            return await asyncio.gather(*(ask_until_refused(line["grpc"], told) for _ in range(CLIENTS)))

        found = asyncio.run(everyone())
        assert min(count for count, _ in found) >= 1
        assert process.wait(20) == 0
        assert process.stderr is not None
        events = [json.loads(text)["event"] for text in process.stderr.read().splitlines()]  # gRPC's core writes nothing of its own
        assert events[-1] == "stopped"


def test_an_idle_stream_does_not_hold_the_server(models: Path) -> None:
    with serving(models, TIDEGATE_DRAIN_DELAY="0s", TIDEGATE_DRAIN_TIMEOUT="60s") as (process, line):

        async def client() -> str:
            async with grpc.aio.insecure_channel(line["grpc"]) as channel:
                stream: Any = channel.stream_stream(f"{SERVICE}ModelStreamInfer")()
                for _ in range(10):
                    await stream.write(BODY)
                    assert len(await stream.read()) > 64
                process.send_signal(signal.SIGTERM)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stream.read()
                assert "going down" in (caught.value.details() or "")
                return caught.value.code().name

        assert asyncio.run(asyncio.wait_for(client(), 30)) == "UNAVAILABLE"
        assert process.wait(20) == 0
