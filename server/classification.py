"""The classification extension: an output's best classes in place of the output, as `value:index` or `value:index:label`. Pure.

Each row is sorted by itself, the best first; of equals the one that stands first in the output, and NaN after everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from server.errors import InvalidRequest
from server.messages import InferRequest, InferResponse, OnResponse, RequestedOutput
from server.tensors import Tensor, TensorSpec


def classified(request: InferRequest, specs: Sequence[TensorSpec], on_response: OnResponse, *, batched: bool) -> OnResponse:
    """`on_response`, behind a stage that puts classes in the place of the outputs for which the request asks them; itself where it asks
    for none. Raises InvalidRequest for an output whose values have no order."""
    asked = {output.name: output.classification for output in request.outputs if output.classification}
    if not asked:
        return on_response
    known = {spec.name: spec for spec in specs if spec.name in asked}
    for spec in known.values():
        if not spec.dtype.size:
            raise InvalidRequest(f"class result not available for output '{spec.name}' due to unsupported type '{spec.datatype}'")

    def respond(response: InferResponse, final: bool) -> None:
        outputs = dict(response.outputs)  # the response's own may be another's too
        for name in asked.keys() & outputs.keys():
            spec = known[name]
            outputs[name] = top_classes(outputs[name], asked[name], spec.labels, per_row=batched and spec.batch_axis == 0)
        response.outputs = outputs
        on_response(response, final)

    return respond


def wants_classes(outputs: Sequence[RequestedOutput]) -> bool:
    """Whether classes are asked for, of any of these outputs."""
    return any(count for _, count in outputs)


def top_classes(array: Tensor, count: int, labels: Sequence[str], *, per_row: bool) -> Tensor:
    """The best `count` classes as BYTES: [rows, count], or [count] where the output isn't per row; fewer where there are no more. What
    lies behind the rows counts flat, and an index that `labels` don't reach has none."""
    rows = array.reshape(len(array) if per_row else 1, -1)
    count = min(count, rows.shape[1])
    written = np.empty((len(rows), count), object)
    show = _SHOWN[rows.dtype.kind if rows.dtype.kind in "iub" else "f"]
    for number, row in enumerate(rows):
        for place, index in enumerate(_best(row, count).tolist()):
            label = f":{labels[index]}" if index < len(labels) else ""
            written[number, place] = f"{show(row[index])}:{index}{label}".encode()
    return written if per_row else written[0]


_SHOWN: Mapping[str, Callable[[object], str]] = {
    "f": lambda value: f"{float(value):f}",  # type: ignore[arg-type] # as Triton writes them, which its clients cut at the colons
    **dict.fromkeys("iub", lambda value: str(int(value))),  # type: ignore[call-overload]
}


def _best(row: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values, the largest first. Only those that are no smaller than the last of them are sorted."""
    if row.dtype.kind not in "iu":
        row = row.astype(np.float64)
        row[np.isnan(row)] = -np.inf
    if not count:
        return np.empty(0, np.intp)
    least = np.partition(row, len(row) - count)[len(row) - count]
    found = np.flatnonzero(row >= least)
    order = np.argsort(row[found][::-1], kind="stable")[::-1]
    best: Tensor = found[len(found) - 1 - order[:count]]
    return best
