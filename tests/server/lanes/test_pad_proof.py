"""Which models bear padding: those with a mask do, those that count every token don't, on every kind of lane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from server.backends.base import VariantSpec
from server.backends.ort.backend import OnnxRuntimeBackend
from server.lanes.base import Lane, OnLoss, OnResult, RunResult
from server.lanes.inline import InlineLane
from server.lanes.pad_proof import pad_fault
from server.lanes.thread import ThreadLane
from server.padding import PadAxis, Padding
from server.tensors import Tensor, TensorSpec
from tests.server.models import Build, embedding_model, identity_model, masked_model, place
from tests.server.repository.test_loader import described

LANES = (InlineLane, ThreadLane)


async def fault_of(folder: Path, build: Build, yaml: str, lane_class: type[InlineLane | ThreadLane] = ThreadLane) -> str:
    loadable = described(place(folder, "m", build, yaml=yaml))
    spec = loadable.spec
    lane: Lane = lane_class("m", OnnxRuntimeBackend.open(spec), asyncio.get_running_loop())
    try:
        return await pad_fault(lane, loadable.padding)
    finally:
        lane.close()


MASKED = "batching: {pad_axes: {tokens: [1], mask: [1]}}"


@pytest.mark.parametrize("lane_class", LANES)
async def test_a_model_with_a_mask_bears_it(tmp_path: Path, lane_class: type[InlineLane | ThreadLane]) -> None:
    assert await fault_of(tmp_path, masked_model, MASKED, lane_class) == ""


@pytest.mark.parametrize("lane_class", LANES)
async def test_a_model_without_a_mask_does_not(tmp_path: Path, lane_class: type[InlineLane | ThreadLane]) -> None:
    fault = await fault_of(tmp_path, embedding_model, "batching: {pad_axes: {tokens: [1]}}", lane_class)
    assert fault.startswith("output 'y' of the same rows alone and padded differ by up to ")
    assert fault.endswith("the model counts the padding in")


async def test_a_mask_that_is_padded_with_ones_is_none(tmp_path: Path) -> None:
    fault = await fault_of(tmp_path, masked_model, "batching: {pad_axes: {tokens: [1], mask: [1]}, pad_values: {mask: 1}}")
    assert fault.startswith("output 'mean' of the same rows alone and padded differ by up to ")


async def test_padding_that_the_model_refuses(tmp_path: Path) -> None:
    fault = await fault_of(tmp_path, masked_model, MASKED.replace("}}", "}, pad_values: {tokens: 99}}"))
    assert fault.startswith("a run with padding failed: ")


async def test_an_output_that_should_have_been_cut(tmp_path: Path) -> None:
    fault = await fault_of(tmp_path, masked_model, MASKED + "\noutputs: {each: {pad_axes: []}}")
    assert fault == (
        "output 'each' of the same rows alone and padded have the shapes [2, 5, 4] and [2, 9, 4]; "
        "outputs.NAME.pad_axes says which axes are padded"
    )


@pytest.mark.parametrize("datatype", ["BYTES", "FP16", "BOOL", "INT8"])
async def test_other_datatypes(tmp_path: Path, datatype: str) -> None:
    yaml = "batching: {pad_axes: {x: [1]}}"
    assert await fault_of(tmp_path, lambda path: identity_model(path, datatype, width="L"), yaml) == ""


async def test_within_what_the_model_takes(tmp_path: Path) -> None:
    limited = "batching: {pad_axes: {tokens: [1], mask: [1]}}\ninputs: {tokens: {max_shape: [-1, 2]}, mask: {max_shape: [-1, 2]}}"
    assert await fault_of(tmp_path, masked_model, limited) == ""
    never = limited.replace("2]", "1]")
    assert "max_shape lets no input be" in await fault_of(tmp_path / "never", masked_model, never)


async def test_a_model_that_takes_nothing(tmp_path: Path) -> None:
    specs = (TensorSpec("tokens", "INT64", (-1, -1)),)
    path = embedding_model(tmp_path / "model.onnx", vocabulary=1)  # every sample holds token 1
    lane = ThreadLane("m", OnnxRuntimeBackend.open(VariantSpec("m", "1", "fp32", "onnxruntime", path)), asyncio.get_running_loop())
    padding = described(place(tmp_path, "m", embedding_model, yaml="batching: {pad_axes: {tokens: [1]}}")).padding
    assert isinstance(padding, Padding)
    assert lane.inputs == specs
    assert (await pad_fault(lane, padding)).startswith("no two lengths were found that the model takes: ")
    lane.close()


class Fickle:
    """A lane at the seam whose answer for several rows has no axes."""

    kind = name = "fickle"
    depth = 1
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, -1)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, -1)),)

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return np.empty(shape, np.float32)

    def submit(self, inputs: Mapping[str, Tensor], rows: int, on_result: OnResult) -> None:
        on_result(RunResult({"y": inputs["x"] if rows < 3 else np.zeros((), np.float32)}, 0.0, 0.0))

    def successor(self) -> None:
        return None

    def watch(self, on_loss: OnLoss) -> None:
        """It can't be lost."""

    def renew(self, wanted: Callable[[], bool]) -> Fickle:
        return self

    def close(self) -> None:
        """Nothing is open."""


async def test_an_answer_that_loses_its_axes() -> None:
    axes = (PadAxis(1, "n"),)
    padding = Padding({"x": axes}, {"y": axes}, {"x": np.float32(0)})
    assert await pad_fault(Fickle(), padding) == "output 'y' has 2 axes alone and 0 padded"
