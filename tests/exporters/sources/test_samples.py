"""Samples made from an example stay in its range; lengths vary together."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from exporters.sources.samples import Lengths, RowStream, shaken

FLOATS = st.floats(-1e3, 1e3, width=32)


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=5), elements=FLOATS), st.integers(1, 40))
def test_floats_start_with_the_example_and_stay_in_its_range(example: NDArray[Any], rows: int) -> None:
    made = RowStream({"x": example}, seed=0).take(rows)["x"]
    exact = min(rows, len(example))
    assert made.shape == (rows, *example.shape[1:])
    assert made.dtype == example.dtype
    np.testing.assert_array_equal(made[:exact], example[:exact])
    assert made.min() >= example.min()
    assert made.max() <= example.max()


@given(arrays(np.int64, array_shapes(min_dims=1, max_dims=3, max_side=5), elements=st.integers(0, 99)), st.integers(1, 40))
def test_integers_keep_the_range_of_their_own_column(example: NDArray[Any], rows: int) -> None:
    made = RowStream({"x": example}, seed=0).take(rows)["x"]
    for column in range(example.shape[1] if example.ndim > 1 else 0):
        assert set(made[:, column].ravel()) <= set(example[:, column].ravel())
    assert set(made.ravel()) <= set(example.ravel())


def test_a_token_and_its_mask_move_together() -> None:
    ids = np.arange(1, 15).reshape(2, 7) * np.array([[1], [1]])
    mask = (ids % 3 == 0).astype(np.int64)
    made = RowStream({"ids": ids, "mask": mask}, seed=0, exchangeable={"ids", "mask"}).take(20)
    np.testing.assert_array_equal(made["mask"], made["ids"] % 3 == 0)
    assert any(sorted(row) != list(row) for row in made["ids"][2:])


def test_streams_repeat_and_go_on() -> None:
    example = {"x": np.random.default_rng(0).normal(size=(3, 2))}
    one, two = RowStream(example, 5), RowStream(example, 5)
    np.testing.assert_array_equal(one.take(4)["x"], two.take(4)["x"])
    assert not np.array_equal(one.take(4)["x"], RowStream(example, 5).take(4)["x"])
    np.testing.assert_array_equal(RowStream(example, 0, perturb=False).take(6)["x"], np.tile(example["x"], (2, 1)))


def test_odd_floats_pass_through() -> None:
    example = {"x": np.array([[np.inf, np.nan]], np.float32)}
    np.testing.assert_array_equal(RowStream(example, 0).take(3)["x"], np.tile(example["x"], (3, 1)))


def test_a_whole_example_is_shaken() -> None:
    example = {"x": np.array([1.0, 2.0]), "n": np.array(3)}
    assert shaken(example, 0)["x"] is not example["x"]
    np.testing.assert_array_equal(shaken(example, 0)["x"], example["x"])
    assert not np.array_equal(shaken(example, 1)["x"], example["x"])
    assert shaken(example, 1)["n"] == 3


def test_every_second_pair_moves_what_lies_along_the_first_axis() -> None:
    x = np.arange(40.0).reshape(20, 2)
    example = {"x": x, "weight": x[:, 0], "ids": np.arange(20)}
    for seed in (1, 4, 5):
        assert np.abs(shaken(example, seed)["x"] - x).max() < 8
    for seed in (2, 3, 6):
        moved = shaken(example, seed)
        assert np.abs(moved["x"] - x).max() > 8
        assert np.abs(moved["x"][:, 0] - moved["weight"]).max() < 16  # together, but for the noise on each
        np.testing.assert_array_equal(moved["ids"], example["ids"])


def test_axes_alike_share_a_symbol() -> None:
    example = {"ids": np.zeros((2, 7)), "mask": np.zeros((2, 7)), "image": np.zeros((2, 3, 9))}
    lengths = Lengths(example, {"ids": {0: None, 1: 12}, "mask": {1: 12}, "image": {2: None}}, batched=True)
    assert lengths.by_input() == {"ids": {1: "ids_dim1"}, "mask": {1: "ids_dim1"}, "image": {2: "image_dim2"}}
    assert lengths.exchangeable() == {"ids", "mask"}
    assert lengths.max_shape("ids", 2) == [-1, 12]
    assert lengths.max_shape("image", 3) is None
    assert lengths.trials() == [{"ids_dim1": 4, "image_dim2": 5}, {"ids_dim1": 12, "image_dim2": 9}]
    shapes = [lengths.apply(example, now)["mask"].shape for now in islice(lengths.cycle(), 3)]
    assert shapes == [(2, 7), (2, 4), (2, 7)]
    longer = lengths.apply(example, {"ids_dim1": 12, "image_dim2": 9})
    assert longer["ids"].shape == (2, 12)
    runs = [{"ids": np.zeros((1, 7)), "image": np.zeros((1, 3, size))} for size in (9, 5)]
    assert lengths.symbol_of([9, 5], runs) == "image_dim2"
    assert lengths.symbol_of([9, 6], runs) is None


def test_the_first_axis_varies_too_where_it_is_not_the_batch() -> None:
    lengths = Lengths({"x": np.zeros((1, 3))}, {"x": {0: None}}, batched=False)
    assert lengths.trials() == [{"x_dim0": 2}]
