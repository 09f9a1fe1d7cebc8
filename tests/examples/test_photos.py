"""Photos as the classifier takes them."""

from __future__ import annotations

import numpy as np
import pytest

from examples.models.mobilenet_v2 import MEAN, SIDE, STD
from examples.photos import Photo, as_input, photos


def test_four_photos_with_their_classes() -> None:
    assert [photo.name for photo in photos()] == ["cat", "cup of coffee", "rocket", "palace"]
    for photo in photos():
        assert photo.pixels.dtype == np.uint8
        assert photo.shows
        assert all(0 <= shown < 1000 for shown in photo.shows)
        found = as_input(photo)
        assert found.shape == (1, 3, SIDE, SIDE)
        assert found.dtype == np.float32
        assert abs(found).max() < 3  # 0 and 1 lie some two deviations from the mean


@pytest.mark.parametrize("shape", [(300, 500, 3), (500, 300, 3), (100, 100, 3)])
def test_one_colour_stays_one_colour(shape: tuple[int, ...]) -> None:
    pixels = np.broadcast_to(np.array([255, 0, 51], np.uint8), shape)
    found = as_input(Photo("red", np.ascontiguousarray(pixels), frozenset()))
    expected = (np.array([1.0, 0.0, 0.2]) - MEAN) / STD
    np.testing.assert_allclose(found[0], np.broadcast_to(expected[:, None, None], (3, SIDE, SIDE)), rtol=1e-5)


def test_the_middle_is_cut_out() -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 128:384] = 255
    found = as_input(Photo("band", pixels, frozenset()))
    assert (found > 0).all()
