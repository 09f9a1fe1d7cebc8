"""Copies of a model's requests to another version, whose answers are compared with those that clients got and then dropped.

A copy is made once the client has its answer: nobody waits for it. Few are under way at once, they go only to a version whose queue is
empty, and while the version that answers has a run's worth of requests waiting none is made: under load copies are dropped first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

from server.errors import TidegateError
from server.messages import InferRequest, InferResponse
from server.numerics import Distance, distance, merged
from server.router.table import ServedVersion, ServingTable
from server.tensors import Tensor

MOST_OPEN = 4
"""Copies that are under way at once."""
MOST_BYTES = 1 << 20
"""Bytes of a request's inputs, and of its answer, beyond which it isn't copied: comparing takes the event loop."""
TOLERANCE = 0.1
"""Of answers that aren't class scores: largest difference over the largest value, up to which they agree."""

RESULTS = ("same", "differs", "dropped", "failed")
"""What comes of a copy. Dropped: none was made; failed: the other version gave no answer, or one that can't be compared."""


class Shadow:
    """Of one model. `told` is called with whether the answers differ, of each copy that was compared."""

    __slots__ = ("_model", "_open", "_table", "compared", "results", "told", "version")

    def __init__(self, table: ServingTable, model: str, version: str, told: Callable[[bool], None]) -> None:
        self.version = version
        self.told = told
        self.results = dict.fromkeys(RESULTS, 0)
        self.compared = Distance()
        self._table = table
        self._model = model
        self._open = 0

    def offer(self, request: InferRequest, outputs: Mapping[str, Tensor]) -> None:
        """A request was answered with these: copy it, if that is free."""
        if request.version == self.version:
            return
        target, source = self._table.version(self._model, self.version), self._table.version(self._model, request.version)
        front = target.serving if target is not None else None
        large = max(map(_size, (request.inputs, outputs))) > MOST_BYTES
        if front is None or target is None or large or self._open >= MOST_OPEN or not _idle(target, source):
            self.results["dropped"] += 1
            return
        copy = InferRequest(self._model, dict(request.inputs), request.layout, self.version, outputs=request.outputs, received=monotonic())
        reference = {name: array.copy() for name, array in outputs.items()}  # what it lies in may be another run's by then
        self._open += 1

        def answered(again: InferResponse, final: bool) -> None:
            if final:
                self._open -= 1
                self._compare(reference, again)

        try:
            front.submit(copy, answered)
        except TidegateError:
            self._open -= 1
            self.results["failed"] += 1

    def _compare(self, reference: dict[str, Tensor], again: InferResponse) -> None:
        try:
            if again.error is not None:
                raise again.error
            gaps = [distance(array, again.outputs[name]) for name, array in reference.items() if not array.dtype.hasobject]
        except (TidegateError, ValueError, KeyError):  # other shapes or names: nothing that could be compared
            self.results["failed"] += 1
            self.told(True)
            return
        differs = any(map(_differs, gaps)) or any(
            array.dtype.hasobject and not (array == again.outputs[name]).all() for name, array in reference.items()
        )
        self.compared = merged(self.compared, *gaps)
        self.results["differs" if differs else "same"] += 1
        self.told(differs)


def _differs(gap: Distance) -> bool:
    """Another top-1 of class scores; of anything else a difference that is too large."""
    return gap.disagreements > 0 if gap.classified else gap.max_relative > TOLERANCE


def _idle(target: ServedVersion, source: ServedVersion | None) -> bool:
    """Whether nothing waits for the version that is to be asked, and less than a run's worth for the one that answers clients."""
    if target.engine is not None and target.engine.queue_rows:
        return False
    engine = source.engine if source is not None else None
    return engine is None or engine.queue_rows < max(1, engine.max_rows)


def _size(arrays: Mapping[str, Tensor]) -> int:
    return sum(array.nbytes for array in arrays.values())
