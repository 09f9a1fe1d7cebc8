"""Photos to ask an image classifier about: they come with scikit-image and scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from examples.models.mobilenet_v2 import SIDE, normalise

CATS = frozenset(range(281, 286))
"""ImageNet's classes of domestic cats. Below: coffee mug, espresso; missile, projectile, space shuttle; palace."""

RESIZED = 256
"""The shorter side before the middle is cut out: what the network was tested with."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo [height, width, 3] uint8, and the ImageNet classes that name what it shows (any of them is a right answer)."""

    name: str
    pixels: NDArray[np.uint8]
    shows: frozenset[int]


def photos() -> list[Photo]:
    """All of them."""
    return [
        Photo("cat", _sample("chelsea"), CATS),
        Photo("cup of coffee", _sample("coffee"), frozenset({504, 967})),
        Photo("rocket", _sample("rocket"), frozenset({657, 744, 812})),
        Photo("palace", load_sample_image("china.jpg"), frozenset({698})),
    ]


def _sample(name: str) -> NDArray[np.uint8]:
    photo: NDArray[np.uint8] = getattr(skimage.data, name)()
    return photo


def as_input(photo: Photo) -> NDArray[np.float32]:
    """The photo as MobileNetV2 takes it: FP32 [1, 3, 224, 224], the shorter side at 256, the middle cut out, normalised."""
    image = Image.fromarray(photo.pixels)
    scale = RESIZED / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels: NDArray[Any] = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    return normalise(pixels.transpose(2, 0, 1)[None])
