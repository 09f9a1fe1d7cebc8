"""The checks of `make gpu-check`: each takes a GPU and an empty folder, and gives what it found in words, or raises CheckFailed."""

from __future__ import annotations

import asyncio
import ctypes
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from exporters.formats.to_trt import profiles
from exporters.formats.trt_build import Settings, build
from server.backends.base import Backend, VariantSpec
from server.backends.nvidia.cuda import Gpu
from server.backends.registry import backend_named
from server.errors import ModelDefect
from server.lanes.opening import LanePlan, open_lanes
from server.repository.manifest import file_sha256
from server.tensors import Tensor, TensorSpec

DEVICE = "cuda:0"
BLOCK = 64 << 20
WIDTH, CLASSES, MOST_ROWS = 64, 16, 64
CLOSE = {"fp32": 1e-4, "fp16": 2e-2}
"""How far from the CPU's FP32 an answer may be, of its largest value."""


class CheckFailed(Exception):
    """A check ran and didn't hold."""


def pinned_copies(gpu: Gpu, folder: Path) -> str:
    """What goes to the device by a stream comes back, at the speed of pinned memory."""
    gpu.use()
    stream, there = gpu.stream(), gpu.allocate(BLOCK)
    source, target = gpu.allocate_pinned(BLOCK), gpu.allocate_pinned(BLOCK)
    try:
        sent, back = _bytes_at(source), _bytes_at(target)
        sent[:] = np.random.default_rng(0).integers(0, 256, BLOCK, np.uint8)
        seconds: list[float] = []
        for _ in range(5):
            back[:] = 0
            begun = time.perf_counter()
            gpu.to_device(there, source, BLOCK, stream)
            gpu.to_host(target, there, BLOCK, stream)
            gpu.wait(stream)
            seconds.append(time.perf_counter() - begun)
        if not np.array_equal(sent, back):
            raise CheckFailed("what came back from the device isn't what was sent")
    finally:
        gpu.close_stream(stream)
        gpu.free(there)
        gpu.free_pinned(source)
        gpu.free_pinned(target)
    return f"{2 * BLOCK / statistics.median(seconds) / 1e9:.1f} GB/s there and back, {gpu.free_memory() >> 20} MiB free after"


def _bytes_at(address: int) -> Tensor:
    return np.ndarray(BLOCK, np.uint8, memoryview((ctypes.c_char * BLOCK).from_address(address)).cast("B"))


def nvml_figures(gpu: Gpu, folder: Path) -> str:
    """The monitor's own reader finds this GPU's figures."""
    from monitor.sources.nvml import Nvml

    source = Nvml("gpu-check", "on")

    async def read() -> list[Any]:
        try:
            return list(await source.read())
        finally:
            await source.close()

    readings = asyncio.run(read())
    if not readings or source.state:
        raise CheckFailed(source.state or "NVML gives no readings")
    return f"{sum(len(reading.samples) for reading in readings)} figures"


def pytorch_backend(gpu: Gpu, folder: Path) -> str:
    """A traced module answers on the GPU as on the CPU, in FP32 and under autocast."""
    path = _traced(folder)
    return ", ".join(_compared(VariantSpec("check", "1", precision, "pytorch", path, device=DEVICE), path) for precision in CLOSE)


def process_lane(gpu: Gpu, folder: Path) -> str:
    """A child with a CUDA context of its own opens the model, warms it up and is closed again."""
    path = _traced(folder)
    spec = VariantSpec("check", "1", "fp32", "pytorch", path, device=DEVICE, threads=1)

    async def opened() -> str:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, open_lanes, spec, LanePlan(kind="process", count=1, rows=(1, 8, 64)), loop)
        for lane in found.lanes:
            await loop.run_in_executor(None, lane.close)
        if not found.warmup.batched:
            raise CheckFailed(f"its rows aren't rows: {found.warmup.why}")
        return ", ".join(f"{rows} rows {seconds * 1e3:.2f} ms" for rows, seconds in found.warmup.latency.items())

    return asyncio.run(opened())


def onnxruntime_cuda(gpu: Gpu, folder: Path) -> str:
    """A session whose nodes are on the GPU answers as one on the CPU."""
    path = _network(folder)
    return _compared(VariantSpec("check", "1", "fp32", "onnxruntime", path, device=DEVICE), path)


def onnxruntime_memory(gpu: Gpu, folder: Path) -> str:
    """Bound arrays stay where they are: once the largest run was there, no more runs take any memory of the device."""
    spec = VariantSpec("check", "1", "fp32", "onnxruntime", _network(folder), device=DEVICE)
    with _opened(spec) as backend:
        for rows in (MOST_ROWS, 1, 2):
            backend.run(_given(backend, rows), rows)
        before = gpu.free_memory()
        for rows in (*range(1, MOST_ROWS + 1), *range(1, MOST_ROWS + 1)):
            backend.run(_given(backend, rows), rows)
        taken = before - gpu.free_memory()
    if taken > 0:
        raise CheckFailed(f"{2 * MOST_ROWS} runs took {taken} bytes of the device and didn't give them back")
    return f"{2 * MOST_ROWS} runs took none"


def onnxruntime_tensorrt(gpu: Gpu, folder: Path) -> str:
    """onnxruntime's TensorRT provider answers as the CPU at all rows of its profile, and finds its engine again at the second open."""
    path, cache = _network(folder), folder / "engines"
    shapes = {"x": ((1, WIDTH), (16, WIDTH), (MOST_ROWS, WIDTH))}
    options = {"provider": "tensorrt", "profile": shapes, "cache": str(cache), "content": file_sha256(path)}
    spec = VariantSpec("check", "1", "fp32", "onnxruntime", path, device=DEVICE, options=options)
    begun = time.perf_counter()
    found = _compared(spec, path)
    first, begun = time.perf_counter() - begun, time.perf_counter()
    kept = {file: file.stat().st_mtime_ns for file in cache.rglob("*.engine")}
    _compared(spec, path)
    again = time.perf_counter() - begun
    if not kept or kept != {file: file.stat().st_mtime_ns for file in cache.rglob("*.engine")}:
        raise CheckFailed(f"{len(kept)} engines were kept at the first open, and the second changed them")
    return f"{found}; opened and run in {first:.1f} s, from its cache in {again:.1f} s"


def tensorrt_engine(gpu: Gpu, folder: Path) -> str:
    """An engine of two profiles is built, and answers as onnxruntime on the CPU at all rows, whichever came before."""
    path = _network(folder)
    shapes = [profiles(_INPUTS, 1, 1), profiles(_INPUTS, 16, MOST_ROWS, 2)]
    built = build(path, shapes, Settings(), gpu, lambda text: None)
    plan = folder / "model.plan"
    plan.write_bytes(built.plan)
    found = _compared(VariantSpec("check", "1", "fp32", "trt", plan, device=DEVICE), path)
    return f"TensorRT {built.facts.tensorrt}, {len(built.plan)} bytes in {built.facts.build_seconds} s; {found}"


def tensorrt_refuses(gpu: Gpu, folder: Path) -> str:
    """TensorRT's own refusal comes as ours, with its words."""
    plan = folder / "model.plan"
    plan.write_bytes(build(_network(folder), [profiles(_INPUTS, 1, 1)], Settings(), gpu, lambda text: None).plan[:1000])
    try:
        backend_named("trt").open(VariantSpec("check", "1", "fp32", "trt", plan, device=DEVICE)).close()
    except ModelDefect as error:
        return str(error).removeprefix(f"{plan}: ")
    raise CheckFailed("an engine that was cut short was opened")


_INPUTS = (TensorSpec("x", "FP32", (-1, WIDTH), 0),)


def _compared(spec: VariantSpec, reference: Path) -> str:
    """How far a variant's answers are from the CPU's FP32, and how long a full batch takes."""
    kind = "pytorch" if reference.suffix == ".pt2" else "onnxruntime"
    with _opened(spec) as there, _opened(VariantSpec("check", "1", "fp32", kind, reference)) as here:
        worst = max(_difference(there, here, rows) for rows in (1, 2, MOST_ROWS, 7, 1, 33))
        if worst > CLOSE[spec.precision]:
            raise CheckFailed(f"{spec.precision} differs by {worst:.1e} of the largest value; {CLOSE[spec.precision]:g} is let through")
        seconds = [_seconds(there) for _ in range(20)]
    return f"{spec.precision} differs by {worst:.1e}, {MOST_ROWS} rows in {statistics.median(seconds) * 1e3:.2f} ms"


def _difference(there: Backend, here: Backend, rows: int) -> float:
    (found,), (wanted,) = (list(backend.run(_given(backend, rows), rows).values()) for backend in (there, here))
    if found.shape != wanted.shape:
        raise CheckFailed(f"{rows} rows gave {list(found.shape)}, and the CPU {list(wanted.shape)}")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _seconds(backend: Backend) -> float:
    inputs = _given(backend, MOST_ROWS)
    begun = time.perf_counter()
    backend.run(inputs, MOST_ROWS)
    return time.perf_counter() - begun


@contextmanager
def _opened(spec: VariantSpec) -> Iterator[Backend]:
    backend = backend_named(spec.backend).open(spec)
    try:
        yield backend
    finally:
        backend.close()


def _given(backend: Backend, rows: int) -> dict[str, Tensor]:
    """The same rows for every backend, by the name that it has for its only input."""
    return {backend.inputs[0].name: np.random.default_rng(rows).standard_normal((rows, WIDTH), np.float32)}


def _weights() -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(1)
    return random.standard_normal((WIDTH, CLASSES), np.float32), random.standard_normal(CLASSES, np.float32)


def _network(folder: Path) -> Path:
    """y = relu(x w + b), as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = _weights()
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name, width in (("x", WIDTH), ("y", CLASSES))]
    graph = helper.make_graph(
        nodes, "check", values[:1], values[1:], [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _traced(folder: Path) -> Path:
    """The same as a .pt2 file."""
    import torch

    weight, bias = _weights()
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, CLASSES), torch.nn.ReLU()).eval()
    module[0].weight.data, module[0].bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias)
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(3, WIDTH),), dynamic_shapes=({0: torch.export.Dim.AUTO},)), path)
    return path
