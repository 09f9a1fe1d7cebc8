"""Resemblyzer's voice encoder: 1.6 s of speech in, who speaks as a unit vector out (Wan et al. 2018; the weights come with Resemblyzer)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WEIGHTS = "resemblyzer/pretrained.pt"
FRAMES, MELS, WIDTH = 160, 40, 256


class VoiceEncoder(nn.Module):
    """FP32 [rows, 160, 40], mel energies → FP32 [rows, 256], of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, WIDTH, num_layers=3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: Tensor) -> dict[str, Tensor]:
        _, (hidden, _) = self.lstm(mels)
        return {"voice": nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)}


def build() -> nn.Module:
    """The trained encoder, in eval mode."""
    path = Path(os.environ.get("TIDEGATE_MODELS") or Path(__file__).resolve().parents[2] / ".models").expanduser() / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; run `make bench-export`, which fetches it")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    network = VoiceEncoder()
    network.load_state_dict({name: tensor for name, tensor in state.items() if name.startswith(("lstm.", "linear."))})
    return network.eval()


def example() -> dict[str, NDArray[Any]]:
    """Noise with the shape of speech's spectrum: more below than above, louder and softer several times a second."""
    rng = np.random.default_rng(0)
    slope = np.geomspace(1.0, 0.01, MELS)
    loudness = 0.5 + 0.5 * np.sin(np.arange(FRAMES) / 8.0)[None, :, None]
    return {"mels": (rng.gamma(1.0, 0.05, (8, FRAMES, MELS)) * slope * loudness).astype(np.float32)}


def dynamic() -> dict[str, list[int]]:
    """Only rows vary."""
    return {"mels": [0]}
