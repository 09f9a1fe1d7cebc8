"""A small network that reads handwritten digits, trained here in seconds: `python -m examples.models.digits WEIGHTS.pt`.

The data are scikit-learn's 1,797 labelled images of 8 × 8 grey values from 0 to 16.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EPOCHS = 15
BATCH = 64
SEED = 0


class Digits(NamedTuple):
    """Images FP32 [n, 1, 8, 8] in 0–16 and labels int64 [n], those to learn from and those held out."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


class DigitsNet(nn.Module):
    """FP32 [rows, 1, 8, 8] in 0–16 → FP32 [rows, 10] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(image / 16)}


def data() -> Digits:
    """The images, 70 % to learn from and 30 % held out, always the same split."""
    bunch = load_digits()
    images = bunch.images.astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)
    split = train_test_split(images, labels, test_size=0.3, random_state=SEED, stratify=labels)
    return Digits(split[0], split[2], split[1], split[3])


def train(path: Path, epochs: int = EPOCHS) -> float:
    """Train from scratch, write the weights (a state_dict) to `path`, and return the accuracy on the held-out images."""
    digits = data()
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = DigitsNet().train()
        optimizer = torch.optim.Adam(network.parameters())
        steps = epochs * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for start in range(0, len(images), BATCH):
                batch = order[start : start + BATCH]
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(images[batch])["logits"], labels[batch])
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(network.state_dict(), partial)
    partial.replace(path)
    return accuracy(network.eval())


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    """The share of held-out images that the network reads right."""
    digits = data()
    scores = network(torch.from_numpy(digits.test_images))["logits"]
    return float((scores.argmax(1).numpy() == digits.test_labels).mean())


def build() -> nn.Module:
    """The network without its weights (the exporter loads those of --weights), in eval mode."""
    return DigitsNet().eval()


def example() -> dict[str, NDArray[Any]]:
    """The first two held-out digits."""
    return {"image": data().test_images[:2]}


def dynamic() -> dict[str, list[int]]:
    """Only rows vary."""
    return {"image": [0]}


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo/digits.pt")
    started = time.monotonic()
    share = train(target)
    seconds, count = time.monotonic() - started, len(data().test_labels)
    print(f"trained in {seconds:.1f} s: {share:.1%} of {count} held-out digits right, weights in {target}")
