"""The work that every server is given: requests of one row with fixed inputs, and the settings that all get which have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Setting:
    """Most rows in a batch (1: batching off), how long to wait for more, threads of a session, instances of the model."""

    max_rows: int
    delay_ms: float = 0.0
    threads: int = 1
    instances: int = 1

    def __str__(self) -> str:
        return f"{self.max_rows} rows, {self.delay_ms:g} ms, {self.instances} x {self.threads}"


@dataclass(frozen=True, slots=True)
class Workload:
    """`settings` are tried by each peer; the best counts. Open-loop answers are held to `objective` (ms). A load lasts `seconds`."""

    name: str
    settings: Sequence[Setting]
    objective: float
    seconds: float
    tolerance: float = 1e-5
    count: int = 64

    def requests(self) -> list[Arrays]:
        """The inputs, by the model's own names, one row each."""
        random = np.random.default_rng(42)
        if self.name == "minilm":
            return [_text(random, length) for length in lengths(self.count)]
        name, shape = {"identity": ("X", (16,)), "mlp": ("X", (784,)), "mobilenet_v2": ("image", (3, 224, 224))}[self.name]
        # Three decimals, as a normalised pixel of eight bits has: a JSON body doesn't grow by digits that mean nothing.
        return [{name: np.round(random.standard_normal((1, *shape)), 3).astype(np.float32)} for _ in range(self.count)]


SMALL = (Setting(32, 0.0), Setting(32, 1.0))
HEAVY = (Setting(4, 0.0, 2), Setting(1, 0.0, 1, 2))
WORKLOADS: Mapping[str, Workload] = {
    each.name: each
    for each in (
        Workload("identity", SMALL, 10.0, 1.5, 0.0),
        Workload("mlp", SMALL, 10.0, 1.5, 1e-4),
        Workload("minilm", HEAVY, 150.0, 3.0, 1e-4, count=256),
        Workload("mobilenet_v2", HEAVY, 400.0, 3.0, 1e-3, count=8),
    )
}


def lengths(count: int, seed: int = 3) -> list[int]:
    """Tokens of a text: log-normal with a median of 28, cut to 8 … 128, as short queries mixed with paragraphs."""
    drawn = np.random.default_rng(seed).lognormal(3.35, 0.6, count)
    return [int(length) for length in np.clip(np.round(drawn), 8, 128)]


def _text(random: np.random.Generator, length: int) -> Arrays:
    ids = random.integers(1000, 20000, (1, length), dtype=np.int64)
    ids[0, 0], ids[0, -1] = 101, 102
    return {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}
