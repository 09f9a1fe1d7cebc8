"""One timed run of a backend, whatever happens in it: the result carries the outputs or the error, never an exception."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Protocol

from server.errors import BackendFailure, TidegateError
from server.lanes.base import RunResult
from server.tensors import Tensor


class Runs(Protocol):
    """What is timed: a backend's run."""

    def run(self, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """See Backend.run."""
        ...


def timed_run(backend: Runs, inputs: Mapping[str, Tensor], rows: int) -> RunResult:
    """Run `rows` rows now, in this thread. Times are time.monotonic."""
    outputs: dict[str, Tensor] = {}
    error: TidegateError | None = None
    started = monotonic()
    try:
        outputs = backend.run(inputs, rows)
    except TidegateError as failure:
        error = failure
    except Exception as failure:  # noqa: BLE001 - a third party's backend may raise anything; its requests get a 500, the lane lives on
        error = BackendFailure(f"the model's run failed: {type(failure).__name__}: {failure}")
    return RunResult(outputs, started, monotonic(), error)
