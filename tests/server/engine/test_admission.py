"""On which terms a request is taken: its deadline, priority and tenant, what shares a run with it, how much it weighs."""

from __future__ import annotations

import numpy as np
import pytest

from server.engine.admission import Terms, admit, bytes_of, fit, terms_of, with_values
from server.engine.request_queue import QueueLimits
from server.errors import InvalidRequest
from server.messages import InferRequest, Layout, Scalar
from server.padding import NO_PADDING, PadAxis, Padding
from server.repository.model_config import Batching, ModelConfig, Queue, Tenant
from server.tensors import Tensor, TensorSpec, dtype_of

NOTHING = InferRequest("m", {}, Layout(()))


def asked(parameters: dict[str, Scalar] | None = None, terms: Terms | None = None, tenant: str = "") -> InferRequest:
    request = InferRequest("m", {}, Layout(()), received=100.0, tenant=tenant)
    if parameters is not None:
        request.parameters = parameters
    admit(request, terms or Terms())
    return request


# Deadlines


@pytest.mark.parametrize(
    ("said", "terms_timeout", "deadline"),
    [(None, None, None), (250_000, None, 100.25), (0, None, None), (None, 2.0, 102.0), (0, 2.0, 102.0), (500_000, 2.0, 100.5)],
)
def test_the_requests_own_timeout_comes_before_the_models(said: int | None, terms_timeout: float | None, deadline: float | None) -> None:
    assert asked({} if said is None else {"timeout": said}, Terms(timeout=terms_timeout)).deadline == deadline


@pytest.mark.parametrize(
    ("queue", "objective", "timeout"),
    [
        (Queue(), None, None),
        (Queue(), 0.05, None),
        (Queue(on_late="reject"), 0.05, 0.05),
        (Queue(on_late="reject"), None, None),
        (Queue(on_late="reject", timeout=1.0), 0.05, 1.0),
        (Queue(timeout=1.0), 0.05, 1.0),
    ],
)
def test_the_objective_is_a_deadline_only_where_late_answers_are_rejected(
    queue: Queue, objective: float | None, timeout: float | None
) -> None:
    assert terms_of(ModelConfig(queue=queue, batching=Batching(latency_objective=objective)), NO_PADDING).timeout == timeout


def test_terms_are_as_model_yaml_has_them() -> None:
    queue = Queue(max_rows=8, max_bytes=64, priorities=3, tenants={"a": Tenant(weight=2)})
    padding = Padding({"x": (PadAxis(1, "n"),)})
    assert terms_of(ModelConfig(queue=queue), padding) == Terms(QueueLimits(8, 64), None, 3, frozenset({"a"}), padding)


@pytest.mark.parametrize("value", [-1, 1.5, True, "1s"])
def test_a_timeout_that_is_none(value: Scalar) -> None:
    with pytest.raises(InvalidRequest, match=r"parameter 'timeout' must be a whole number of microseconds, 0 for the model's own; got"):
        asked({"timeout": value})


# Priorities, tenants, explain


@pytest.mark.parametrize("value", [0, 1, 3])
def test_priorities_in_range(value: int) -> None:
    assert asked({"priority": value}, Terms(priorities=3)).priority == value


@pytest.mark.parametrize("value", [-1, 4, 1.0, True, "high"])
def test_priorities_out_of_range(value: Scalar) -> None:
    text = r"parameter 'priority' for model 'm' must be a whole number from 1 \(first\) to 3 \(last\), or 0 for the last; got "
    with pytest.raises(InvalidRequest, match=text):
        asked({"priority": value}, Terms(priorities=3))


@pytest.mark.parametrize(
    ("named", "known", "counted"),
    [("", (), ""), ("", ("a",), ""), ("a", ("a", "b"), "a"), ("c", ("a", "b"), "other"), ("c", (), ""), ("other", ("a",), "other")],
)
def test_tenants_that_no_model_yaml_names_are_others(named: str, known: tuple[str, ...], counted: str) -> None:
    assert asked(terms=Terms(tenants=frozenset(known)), tenant=named).tenant == counted


def test_explain_is_asked_for() -> None:
    assert not asked().explain
    assert not asked({"explain": False}).explain
    assert asked({"explain": True}).explain
    with pytest.raises(InvalidRequest, match="parameter 'explain' must be true or false; got 'yes'"):
        asked({"explain": "yes"})


def test_what_is_not_known_is_passed_over() -> None:
    assert asked({"sequence_id": 3, "triton_enable_empty_final_response": True}).deadline is None


# What a layout means


IDS, MASK, TEMPERATURE = TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT8", (-1, -1)), TensorSpec("t", "FP32", (), None)
PADDED = Padding({"ids": (PadAxis(1, "tokens"),), "mask": (PadAxis(1, "tokens"),)}, named=frozenset({"tokens"}))


def layout(**shapes: tuple[int, ...]) -> Layout:
    kinds = {"ids": "INT64", "mask": "INT8", "t": "FP32", "text": "BYTES"}
    return Layout(tuple((name, kinds[name], shape) for name, shape in shapes.items()))


def test_rows_length_and_bytes() -> None:
    found = fit(layout(ids=(2, 7), mask=(2, 7)), "m", (IDS, MASK), 8, PADDED)
    assert (found.rows, found.length, found.bytes) == (2, 7, 2 * 7 * 9)
    assert found.group == fit(layout(ids=(1, 3), mask=(1, 3)), "m", (IDS, MASK), 8, PADDED).group
    unpadded = fit(layout(ids=(2, 7), mask=(2, 7)), "m", (IDS, MASK), 8)
    assert (unpadded.length, unpadded.group == found.group) == (1, False)


def test_inputs_of_one_axis_must_be_equally_long() -> None:
    text = "inputs 'ids' and 'mask' for model 'm' share the axis 'tokens', so they must be equally long on it; got 7 and 8"
    with pytest.raises(InvalidRequest, match=text):
        fit(layout(ids=(2, 7), mask=(2, 8)), "m", (IDS, MASK), 8, PADDED)


def test_text_is_weighed_by_what_it_holds() -> None:
    text = TensorSpec("text", "BYTES", (-1, 1))
    fitted = fit(layout(text=(2, 1)), "m", (text,), 8)
    values = np.array([[b"abc"], [b"de"]], object)
    assert fitted.bytes == -1
    assert bytes_of(InferRequest("m", {"text": values}, NOTHING.layout)) == 5
    assert fit(layout(ids=(2, 7)), "m", (IDS,), 8).bytes == 2 * 7 * 8


def test_what_is_not_per_row_must_be_equal_to_share_a_run() -> None:
    def group(value: Tensor) -> object:
        assert dtype_of(value)
        return with_values("g", InferRequest("m", {"t": value}, NOTHING.layout), ("t", "absent"))

    assert group(np.array(0.5, np.float32)) == group(np.array(0.5, np.float32)) != group(np.array(0.7, np.float32))
    assert group(np.array([b"a"], object)) == group(np.array([b"a"], object)) != group(np.array([b"b"], object))
    assert hash(group(np.array([b"a"], object)))
