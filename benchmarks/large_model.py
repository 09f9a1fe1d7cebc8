"""A model whose weights don't fit one ONNX file: 2.17 GiB of random numbers in FP32, an embedding and linear layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WORDS, WIDTH, LAYERS, TOKENS = 60_000, 4096, 20, 8


class Large(nn.Module):
    """INT64 [rows, 8] → FP32 [rows, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.words(ids).mean(1)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return {"scores": self.head(x)}


def build() -> nn.Module:
    """The model, in eval mode."""
    return Large().eval()


def example() -> dict[str, NDArray[Any]]:
    """Random words."""
    return {"ids": np.random.default_rng(0).integers(0, WORDS, (4, TOKENS))}
