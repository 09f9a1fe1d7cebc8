"""What is known of a version's precisions before they run: which there are, and what others measured or published of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeAlias

from server.backends.latency_table import Curve
from server.repository.configs.reading import said_wrong
from server.repository.manifest import Manifest, processor
from server.repository.model_config import ModelConfig
from server.repository.store import Entry

Seconds: TypeAlias = Mapping[int, float]
"""Seconds of a run by its rows."""
Expected: TypeAlias = Mapping[str, Seconds]
"""By precision, of all that a version has; empty where nobody measured it on this device."""
PUBLISHED_AT = (1, 2, 4, 8, 16, 32, 64, 128)


def check_precisions(entry: Entry, config: ModelConfig, have: Collection[str], where: Path | str) -> None:
    """Raises ModelDefect, with the line in model.yaml, for a precision of its `precision` section that the version doesn't have, and for a
    ladder that has nothing to step by."""
    if config.precision.policy == "ladder" and config.batching.latency_objective is None:
        raise said_wrong(entry.path, ("precision", "policy"), "ladder steps by batching.latency_objective, which isn't given")
    for key, name in config.precision.named():
        if name not in have:
            what = "needs the reference, which" if key[-1] == "guard" else f"{name!r}"
            raise said_wrong(entry.path, key, f"{what} isn't among those of {where}: {', '.join(have)}")


def measured(manifest: Manifest, device: str) -> Expected:
    """What the exporter measured, where that was on a processor like this one."""
    known = processor() if device == "cpu" else device
    return {
        variant.precision: variant.latency.seconds if variant.latency is not None and variant.latency.device == known else {}
        for variant in manifest.variants
        if variant.engine is None
    }


def published(curves: Mapping[str, Curve]) -> Expected:
    """What a table says."""
    return {precision: {rows: curve.seconds(rows) for rows in PUBLISHED_AT} for precision, curve in curves.items()}
