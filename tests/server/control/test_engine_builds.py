"""Engines that the server has built while the ONNX file serves: by the real exporter on stand-ins for TensorRT and a GPU, in a child
process as ever; and what becomes of builds that fail, hang, or are cut off.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.app import App
from server.backends.nvidia.folders import private_folder
from server.config import load_settings
from server.control.engines.child import COMMAND, child_environment, log_of, run_build
from server.errors import ModelDefect
from server.repository.devices.engines import EngineBuild
from server.router.table import ServedVersion
from tests.nvidia import fake_session, fake_tensorrt
from tests.nvidia.fake_gpu import FakeGpu
from tests.server.models import linear_weights
from tests.server.repository.devices.test_engines import entry
from tests.server.running import http, json_body, wire

X = np.arange(16, dtype=np.float32).reshape(2, 8)
YAML = "lanes: {kind: thread, count: 1}\nbatching: {max_rows: 16}\n"
EXPORTER = (
    sys.executable,
    "-c",
    "import sys, pytest; from tests.nvidia import fake_tensorrt; from tests.nvidia.fake_gpu import FakeGpu; "
    "fake_tensorrt.install(pytest.MonkeyPatch(), FakeGpu()); from exporters.cli import app; app(['engine', *sys.argv[1:]])",
)
"""`tidegate export engine` with TensorRT and the GPU stood in for."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    fake_tensorrt.install(monkeypatch, gpu)
    fake_session.install(monkeypatch)
    return gpu


def script(text: str) -> Sequence[str]:
    return ("/bin/sh", "-c", text, "sh")


class Server:
    """An app on the fake GPU with its own command for builds."""

    def __init__(self, repository: Path, cache: Path, command: Sequence[str], **engines: Any) -> None:
        ports = {"http_port": 0, "grpc_port": "off", "metrics_port": 0}
        control = {"model_control": "explicit", "load_model": "*", "drain_delay": 0.0, "drain_timeout": 10.0}
        flags = {"repository": repository, **ports, **control}
        self.app = App(load_settings(None, {**flags, "lanes_device": "cuda:0", "engines": {"cache": cache, "build": True, **engines}}, {}))
        self.app.control.engines.command = command

    async def __aenter__(self) -> Server:
        await self.app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.app.stop()

    @property
    def served(self) -> ServedVersion:
        found = self.app.table.version("net", "1")
        assert found is not None
        return found

    async def answers_right(self) -> None:
        async with wire(self.app) as line:
            answer = await line.ask(http("/v2/models/net/infer", json_body(X)))
        assert answer.status == 200, answer.body
        weight, bias = linear_weights()
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"], (X @ weight + bias).ravel(), rtol=1e-4)


async def test_onnx_serves_until_the_engine_is_built_and_then_the_engine(tmp_path: Path, gpu: FakeGpu) -> None:
    """And after a restart it's there at once: nothing is built twice."""
    repository = entry(tmp_path / "models", gpu, YAML, tensorrt="10.13.2.6")
    async with Server(repository, tmp_path / "cache", EXPORTER) as server:
        assert server.served.platform == "onnxruntime"
        assert "was built by TensorRT 10.13.2.6, and this is 10.16.1.11; one is built here now" in server.served.reason
        await server.answers_right()
        await server.app.control.engines.settle()
        assert (server.served.platform, server.served.reason) == ("trt", "")
        await server.answers_right()
    (folder,) = (path for path in (tmp_path / "cache" / "built").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"model.fp32.plan", "manifest.json"}
    assert folder.stat().st_mode & 0o777 == 0o700
    async with Server(repository, tmp_path / "cache", script("exit 1")) as server:
        assert (server.served.platform, server.served.reason) == ("trt", "")
        await server.answers_right()


async def test_a_build_that_fails_is_said_and_not_tried_again(tmp_path: Path, gpu: FakeGpu) -> None:
    repository = entry(tmp_path / "models", gpu, YAML, tensorrt="10.13.2.6")
    count = tmp_path / "count"
    async with Server(repository, tmp_path / "cache", script(f"echo x >> {count}; echo 'error: no tactic fits' >&2; exit 1")) as server:
        await server.app.control.engines.settle()
        assert server.served.platform == "onnxruntime"
        assert server.served.reason.endswith("building its fp32 engine failed: no tactic fits")
        assert "one is built here now" not in server.served.reason
        (repository / "net" / "model.yaml").write_text(YAML + "description: changed\n")
        await server.app.control.load("net")
        await server.app.control.engines.settle()
        await server.answers_right()
    assert count.read_text() == "x\n"


async def test_an_engine_that_cannot_be_served_is_not_kept(tmp_path: Path, gpu: FakeGpu) -> None:
    """What was proved a moment ago may find the device full: what serves goes on, and the next start isn't spoilt."""
    repository = entry(tmp_path / "models", gpu, YAML, tensorrt="10.13.2.6")
    async with Server(repository, tmp_path / "cache", EXPORTER) as server:
        gpu.capacity = 0
        await server.app.control.engines.settle()
        assert server.served.platform == "onnxruntime"
        assert "it was built and can't be served: " in server.served.reason
        await server.answers_right()
    assert not [path for path in (tmp_path / "cache" / "built").iterdir() if path.is_dir()]


async def test_nothing_is_built_unless_it_is_allowed(tmp_path: Path, gpu: FakeGpu) -> None:
    repository = entry(tmp_path / "models", gpu, YAML, tensorrt="10.13.2.6")
    async with Server(repository, tmp_path / "cache", script("exit 1"), build=False) as server:
        await server.app.control.engines.settle()
        assert server.served.reason.endswith("`tidegate export --target tensorrt` on this machine builds one")
    assert not (tmp_path / "cache").exists()


async def test_stopping_the_server_ends_the_build(tmp_path: Path, gpu: FakeGpu) -> None:
    repository = entry(tmp_path / "models", gpu, YAML, tensorrt="10.13.2.6")
    pid = tmp_path / "pid"
    async with Server(repository, tmp_path / "cache", script(f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 600")):
        while not pid.exists():
            await asyncio.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# One build


def order(tmp_path: Path) -> EngineBuild:
    return EngineBuild(tmp_path / "net" / "1", "fp32", "cuda:1", 16, tmp_path / "cache" / "built" / "key")


async def test_what_the_exporter_is_told(tmp_path: Path) -> None:
    build = order(tmp_path)
    assert await run_build(build, script('mkdir "$5"; echo "$@"; cat; nice'), 60) == ""
    told, priority = log_of(build).read_text().splitlines()
    assert told == f"{build.folder} --precision fp32 --into {build.into} --engine most_rows=16"
    assert priority in ("0", "19")  # it's lowered right after the start


async def test_one_that_says_nothing(tmp_path: Path) -> None:
    assert await run_build(order(tmp_path), script("exit 3"), 60) == "it ended with status 3 and said nothing"
    assert await run_build(order(tmp_path), script("exit 0"), 60) == "it ended with status 0 and said nothing"


async def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    assert await run_build(order(tmp_path), script("sleep 600"), 0.1) == "it wasn't done after 0.1 s"


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert "/no/such: can't be started: No such file" in await run_build(order(tmp_path), ("/no/such",), 60)


async def test_a_cache_that_others_write_to(tmp_path: Path) -> None:
    private_folder(tmp_path / "cache")
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ModelDefect, match="this user alone writes to"):
        await run_build(order(tmp_path), script("exit 0"), 60)


async def test_the_real_command_is_there(tmp_path: Path) -> None:
    """The exporter itself, asked for an entry that isn't there."""
    assert await run_build(order(tmp_path), COMMAND, 60) == (
        f"{tmp_path / 'net' / '1'}: no manifest there; expected an entry's folder (REPOSITORY/NAME/VERSION), a model's folder, a manifest, "
        f"or an ONNX file with FILE.onnx.manifest.json beside it"
    )


@pytest.mark.parametrize(
    ("visible", "device", "seen"),
    [(None, "cuda:1", "1"), ("3,5", "cuda:1", "5"), ("GPU-1f,GPU-2e", "cuda:0", "GPU-1f"), ("", "cuda:0", "0")],
)
def test_the_child_sees_the_devices_own_gpu(visible: str | None, device: str, seen: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert child_environment(device, environment)["CUDA_VISIBLE_DEVICES"] == seen
