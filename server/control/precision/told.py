"""What operators are told of a model's precisions, and which of them may be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from server.control.precision.choices import Pin
from server.control.precision.residents import answering
from server.errors import InvalidRequest
from server.precision.variants import State
from server.router.table import ServedVariant, ServedVersion
from server.validation import nearest

SHOWN_ROWS = (1, 8, 32)


def checked(serving: Sequence[ServedVersion], precision: str | None) -> None:
    """Raises InvalidRequest for a precision that one of the versions doesn't have here, or that is pinned out; None is model.yaml's."""
    if precision is None:
        return
    for served in serving:
        variant, where = served.variants.get(precision), f"model '{served.model}' version {served.version}"
        if variant is None:
            raise InvalidRequest(f"{where} has no precision {_unknown(precision, served)}; `tidegate export --precisions` makes others")
        if variant.state is State.PINNED_OUT:
            raise InvalidRequest(
                f"{where}: {precision} is pinned out ({variant.why}); "
                f"`tidegate precision unpin {served.model} {precision}` lets it answer again"
            )


def _unknown(precision: str, served: ServedVersion) -> str:
    known = f"{precision[:32]!r}, but {', '.join(served.variants)}{nearest(precision, served.variants)}"
    if precision == "bf16":
        return f"{known}; a T4 and most CPUs have no BF16: FP16 is the half precision there: ask for fp16"
    return known


def told(served: ServedVersion, pins: Mapping[tuple[str, str], Pin]) -> dict[str, Any]:
    """A version's precisions as JSON."""
    return {
        "version": served.version,
        "active": answering(served),
        "configured": served.offered[0],
        "available": list(served.variants),
        "variants": [_variant(variant, pins.get((served.version, name))) for name, variant in served.variants.items()],
    }


def _variant(variant: ServedVariant, pin: Pin | None) -> dict[str, Any]:
    cost = variant.cost
    said: dict[str, Any] = {
        "precision": variant.precision,
        "state": str(variant.state),
        "memory_bytes": variant.memory,
        "proven": variant.proven,
        "held": variant.holders,
        "run_seconds": {} if cost is None else {str(rows): round(cost.mean(rows), 6) for rows in SHOWN_ROWS},
    }
    if variant.why:
        said["why"] = variant.why
    if pin is not None:
        said |= {"pinned_for_s": round(max(0.0, pin.until - time()), 1), "pins": pin.number}
    return said
