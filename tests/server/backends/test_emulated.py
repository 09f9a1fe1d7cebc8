from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.base import VariantSpec
from server.backends.emulated import MAX_DEBT, EmulatedBackend
from server.backends.latency_table import BUILT_IN, Curve, Noise
from server.errors import InvalidRequest, ModelDefect
from server.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 3))
LINE = Curve("NVIDIA T4", "m", "fp16", (2e-3, 1e-3), (), Noise())


class Host:
    """A clock and a sleep that oversleeps by a known amount."""

    def __init__(self, *oversleep: float) -> None:
        self.now = 100.0
        self.oversleep = list(oversleep)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + (self.oversleep.pop(0) if self.oversleep else 0.0)


def spec(inputs: tuple[TensorSpec, ...] = (X,), outputs: tuple[TensorSpec, ...] = (Y,), **options: Any) -> VariantSpec:
    return VariantSpec("m", "1", "fp16", "emulated", Path("t4"), inputs=inputs, outputs=outputs, options=options)


def emulated(host: Host, curve: Curve = LINE, **options: Any) -> EmulatedBackend:
    return EmulatedBackend(spec(**options), curve, clock=host.clock, sleep=host.sleep)


def took(backend: EmulatedBackend, host: Host, rows: int) -> float:
    begun = host.now
    backend.run({"x": np.zeros((rows, 4), np.float32)}, rows)
    return host.now - begun


def test_a_run_takes_what_the_table_says() -> None:
    host = Host()
    backend = emulated(host)
    assert [took(backend, host, rows) for rows in (1, 8, 64)] == pytest.approx([3e-3, 10e-3, 66e-3])


def test_oversleep_is_taken_off_the_next_run() -> None:
    host = Host(0.3e-3, 0.1e-3, 0.0)
    backend = emulated(host)
    runs = [took(backend, host, 1) for _ in range(4)]
    assert runs == pytest.approx([3.3e-3, 2.8e-3, 2.9e-3, 3e-3])


def test_a_stall_of_the_host_is_not_made_up_for() -> None:
    host = Host(0.5)
    backend = emulated(host)
    assert took(backend, host, 8) == pytest.approx(0.51)
    assert took(backend, host, 8) == pytest.approx(0.01 - MAX_DEBT)


@given(st.lists(st.floats(0, MAX_DEBT), min_size=1, max_size=50))
def test_the_mean_of_runs_is_the_tables_whatever_the_host_oversleeps(oversleep: list[float]) -> None:
    host = Host(*oversleep)
    backend = emulated(host)
    runs = [took(backend, host, 4) for _ in (*oversleep, None)]
    assert sum(runs) == pytest.approx(len(runs) * LINE.seconds(4), abs=1e-9)


def test_a_sleep_that_returns_early_is_slept_again() -> None:
    host = Host(-1e-3)
    assert took(emulated(host), host, 8) == pytest.approx(10e-3)


def test_noise_is_the_tables_and_repeats_with_the_seed() -> None:
    noisy = Curve("NVIDIA T4", "m", "fp16", (2e-3, 1e-3), (), Noise(service_sigma=0.02, spike_probability=0.01, spike_factor=1.7))
    ones, twos = ([emulated(Host(), noisy, seed=seed).service_seconds(8) for seed in (1, 1)] for _ in range(2))
    assert ones == twos
    backend = emulated(Host(), noisy, seed=1)
    seconds = np.array([backend.service_seconds(8) for _ in range(20_000)]) / 10e-3
    assert seconds.min() >= 1.0
    assert np.median(seconds) == pytest.approx(1 + 0.6745 * 0.02, abs=1e-3)
    assert (seconds >= 1.7).mean() == pytest.approx(0.01, abs=4e-3)
    assert emulated(Host(), noisy, noise=False).service_seconds(8) == LINE.seconds(8)


# Answers


def test_answers_are_known_values() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert emulated(Host()).run({"x": rows}, 2)["y"].tolist() == [[6, 7, 8], [22, 23, 24]]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_batch_answers_what_its_rows_do_alone(first: int, second: int, seed: int) -> None:
    backend = emulated(Host())
    rows = np.random.default_rng(seed).standard_normal((first + second, 4)).astype(np.float32)
    together = backend.run({"x": rows}, first + second)["y"]
    alone = [backend.run({"x": part}, len(part))["y"] for part in (rows[:first], rows[first:])]
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64", "INT64", "INT32"])
def test_answers_of_each_datatype(datatype: str) -> None:
    host = Host()
    backend = EmulatedBackend(spec(outputs=(TensorSpec("y", datatype, (-1,)),)), LINE, clock=host.clock, sleep=host.sleep)
    answer = backend.run({"x": np.ones((2, 4), np.float32)}, 2)["y"]
    assert answer.dtype == TensorSpec("y", datatype, (-1,)).dtype.numpy
    assert answer.astype(float).tolist() == [4, 4]


def test_texts_count_their_bytes_and_varying_axes_follow_the_input() -> None:
    text, tokens = TensorSpec("s", "BYTES", (-1, 1)), TensorSpec("t", "INT64", (-1, -1))
    host = Host()
    backend = EmulatedBackend(spec((text, tokens), (TensorSpec("y", "FP32", (-1, -1)),)), LINE, clock=host.clock, sleep=host.sleep)
    texts = np.array([[b"abc"], [b""]], object)
    answer = backend.run({"s": texts, "t": np.ones((2, 5), np.int64)}, 2)["y"]
    assert answer.tolist() == [[8, 9, 10, 11, 12], [5, 6, 7, 8, 9]]


def test_outputs_are_written_where_asked() -> None:
    out = np.empty((1, 3), np.float32)
    assert emulated(Host()).run({"x": np.ones((1, 4), np.float32)}, 1, {"y": out})["y"] is out
    assert out.tolist() == [[4, 5, 6]]


def test_wrong_rows_are_the_requests_fault() -> None:
    with pytest.raises(InvalidRequest, match="expected input 'x' with 2 rows; got \\[1, 4\\]"):
        emulated(Host()).run({"x": np.ones((1, 4), np.float32)}, 2)


# Opening


def test_it_opens_the_t4s_figures() -> None:
    backend = EmulatedBackend.open(spec(table=str(BUILT_IN["t4"]), model="resnet50", precision="fp16"))
    assert backend.curve.device == "NVIDIA T4"
    assert backend.curve.seconds(1) == pytest.approx(3.13e-3)
    backend.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spec(inputs=(), model="resnet50"), "needs at least one input"),
        (spec(outputs=(TensorSpec("y", "BYTES", (-1,)),), model="resnet50"), "output 'y' is BYTES"),
        (spec(table="t4", model="resnet5"), "no model 'resnet5'; did you mean 'resnet50'?"),
    ],
)
def test_what_cannot_be_emulated(wrong: VariantSpec, message: str) -> None:
    with pytest.raises(ModelDefect) as caught:
        EmulatedBackend.open(wrong)
    assert message in str(caught.value)
