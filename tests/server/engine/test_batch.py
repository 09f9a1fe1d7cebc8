"""Gather and split: whatever goes into a run comes out as it went in, for every datatype, rank, axis and mix of lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.admission import group_of
from server.engine.batch import fullness, gather, split
from server.engine.request_queue import Ticket
from server.errors import BackendFailure
from server.lanes.buffers import Buffers
from server.messages import InferRequest, InferResponse, Layout, RequestedOutput
from server.padding import NO_PADDING, PadAxis, Padding, filling
from server.tensors import DTYPES, Tensor, TensorSpec


class Desk:
    """A lane that only lends its buffers."""

    kind = name = "desk"
    depth = 1
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.buffer = Buffers(inputs).view

    def submit(self, inputs: Any, rows: int, on_result: Any) -> None:
        raise AssertionError("nothing is run here")

    def successor(self) -> None:
        return None

    def watch(self, on_loss: Any) -> None:
        """It can't be lost."""

    def renew(self, wanted: Any) -> Desk:
        return self

    def close(self) -> None:
        """Nothing is open."""


def ignore(response: InferResponse, final: bool) -> None:
    raise AssertionError("nothing is answered here")


def ticket(arrays: dict[str, Tensor], padding: Padding = NO_PADDING, outputs: tuple[str, ...] = (), rows: int = 0) -> Ticket:
    shapes = {name: array.shape for name, array in arrays.items()}
    layout = Layout(tuple((name, "FP32", shape) for name, shape in shapes.items()))
    request = InferRequest("m", arrays, layout, outputs=tuple(RequestedOutput(name) for name in outputs))
    request.rows, request.length = rows or next(iter(shapes.values()))[0], padding.cells(shapes)
    return Ticket(request, ignore, None)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Ticket], tuple[TensorSpec, ...], Padding]:
    """Requests that may share a run: one to three inputs, some padded, some alike in length."""
    counts = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 6)))]
    specs, pads, values, arrays = [], {}, {}, [dict[str, Tensor]() for _ in counts]
    for number in range(draw(st.integers(1, 3))):
        name, kind = f"x{number}", DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        rank = draw(st.integers(1, 4))
        axis = draw(st.integers(0, rank - 1))
        padded = sorted(draw(st.sets(st.sampled_from([i for i in range(rank) if i != axis])))) if rank > 1 else []
        fixed = [draw(st.integers(1, 3)) for _ in range(rank)]
        specs.append(TensorSpec(name, kind.name, (-1,) * rank, axis))
        if padded:
            pads[name] = tuple(PadAxis(index, f"{name}.{index}") for index in padded)
            values[name] = filling("" if kind.name == "BYTES" else kind.name != "BOOL" and 0, kind.numpy)
        for position, rows in enumerate(counts):
            shape = [rows if i == axis else draw(st.integers(1, 4)) if i in padded else size for i, size in enumerate(fixed)]
            numbers = np.arange(1, np.prod(shape) + 1) % 100
            flat = (
                np.array([*(b"%d" % number for number in numbers), None], object)[:-1]
                if kind.name == "BYTES"
                else numbers.astype(kind.numpy)
            )
            arrays[position][name] = flat.reshape(shape)
    padding = Padding(pads, pads, values)
    return [ticket(given, padding, rows=rows) for rows, given in zip(counts, arrays, strict=True)], tuple(specs), padding


@given(runs())
def test_what_is_gathered_is_split_again(given: tuple[list[Ticket], tuple[TensorSpec, ...], Padding]) -> None:
    tickets, specs, padding = given
    rows = sum(each.rows for each in tickets)
    inputs = gather(tickets, rows, specs, Desk(specs), padding)
    assert {name: array.dtype for name, array in inputs.items()} == {spec.name: spec.dtype.numpy for spec in specs}
    for each, share in zip(tickets, split(tickets, rows, inputs, specs, padding), strict=True):
        assert share.keys() == each.request.inputs.keys()
        for name, array in each.request.inputs.items():
            np.testing.assert_array_equal(share[name], array)


@given(runs())
def test_a_buffer_that_was_used_before_leaves_nothing(given: tuple[list[Ticket], tuple[TensorSpec, ...], Padding]) -> None:
    tickets, specs, padding = given
    rows = sum(each.rows for each in tickets)
    lane = Desk(specs)
    first = {name: array.copy() for name, array in gather(tickets, rows, specs, lane, padding).items()}
    for spec in specs:
        if spec.datatype != "BYTES":
            lane.buffer(spec.name, first[spec.name].shape)[...] = 1
    for name, array in gather(tickets, rows, specs, lane, padding).items():
        np.testing.assert_array_equal(array, first[name])


@given(runs())
def test_what_is_said_of_a_runs_padding_is_true(given: tuple[list[Ticket], tuple[TensorSpec, ...], Padding]) -> None:
    tickets, specs, padding = given
    rows = sum(each.rows for each in tickets)
    length, share = fullness(tickets, rows, gather(tickets, rows, specs, Desk(specs), padding), padding)
    assert length >= max(each.request.length for each in tickets)
    assert 0.0 <= share < 1.0
    assert rows * length * (1 - share) == pytest.approx(sum(each.rows * each.request.length for each in tickets))


TOKENS = Padding({"x": (PadAxis(1, "n"),)}, {"y": (PadAxis(1, "n"),)}, {"x": np.float32(0)})
X = TensorSpec("x", "FP32", (-1, -1))


def test_a_lone_request_is_passed_as_it_is() -> None:
    one = ticket({"x": np.ones((1, 3), np.float32)}, TOKENS)
    inputs = gather([one], 1, (X,), Desk((X,)), TOKENS)
    assert inputs["x"] is one.request.inputs["x"]
    assert fullness([one], 1, inputs, TOKENS) == (3, 0.0)


def test_an_output_that_is_not_as_long_as_its_input_is_a_failure() -> None:
    pair = [ticket({"x": np.ones((1, length), np.float32)}, TOKENS) for length in (3, 5)]
    with pytest.raises(
        BackendFailure, match=r"output 'y' has shape \[2, 4\], expected 5 on axis 1, as its padded input: say in model.yaml"
    ):
        split(pair, 2, {"y": np.ones((2, 4))}, (TensorSpec("y", "FP32", (-1, -1)),), TOKENS)


def test_an_output_without_the_rows_is_a_failure() -> None:
    pair = [ticket({"x": np.ones((1, 3), np.float32)}) for _ in range(2)]
    with pytest.raises(BackendFailure, match=r"output 'y' has shape \[1, 4\], expected 2 rows on axis 0"):
        split(pair, 2, {"y": np.ones((1, 4))}, (TensorSpec("y", "FP32", (-1, 4)),))


def test_what_is_not_per_row_is_shared() -> None:
    scale = TensorSpec("scale", "FP32", (), None)
    pair = [ticket({"x": np.full((1, 2), number, np.float32), "scale": np.array(3, np.float32)}) for number in range(2)]
    inputs = gather(pair, 2, (X, scale), Desk((X, scale)))
    assert inputs["scale"].shape == ()
    shares = split(pair, 2, {"y": inputs["x"], "names": np.array([b"a"], object)}, (X_AS_Y, TensorSpec("names", "BYTES", (1,), None)))
    assert [share["y"].tolist() for share in shares] == [[[0, 0]], [[1, 1]]]
    assert [share["names"].tolist() for share in shares] == [[b"a"], [b"a"]]


X_AS_Y = TensorSpec("y", "FP32", (-1, -1))


def test_an_optional_input_that_nobody_sent_stays_away() -> None:
    extra = TensorSpec("extra", "FP32", (-1, 1), optional=True)
    pair = [ticket({"x": np.ones((1, 2), np.float32)}) for _ in range(2)]
    assert gather(pair, 2, (X, extra), Desk((X, extra))).keys() == {"x"}


def test_only_what_was_asked_for_is_answered() -> None:
    pair = [ticket({"x": np.ones((1, 2), np.float32)}, outputs=names) for names in ((), ("b",))]
    results = {"a": np.ones((2, 1)), "b": np.ones((2, 1))}
    shares = split(pair, 2, results, (TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1))))
    assert [list(share) for share in shares] == [["a", "b"], ["b"]]


def test_groups_leave_padded_axes_out() -> None:
    def group(*shape: int, padding: Padding = TOKENS) -> object:
        return group_of(Layout((("x", "FP32", shape),)), (X,), padding)

    assert group(1, 3) == group(2, 5)
    assert group(1, 3, padding=NO_PADDING) != group(1, 5, padding=NO_PADDING)
    assert group(1, 0) == group(2, 0) != group(1, 3)
