"""Many requests become one run and one run many answers: gather into the lane's buffers, split along the batch axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from server.engine.request_queue import Ticket
from server.errors import BackendFailure
from server.lanes.base import Lane
from server.tensors import Tensor, TensorSpec


def gather(tickets: Sequence[Ticket], rows: int, inputs: Sequence[TensorSpec], lane: Lane) -> dict[str, Tensor]:
    """The run's inputs, each of `rows` rows along its batch axis. A lone request's arrays are passed as they are."""
    if len(tickets) == 1:
        return tickets[0].request.inputs
    return {spec.name: _join([ticket.request.inputs[spec.name] for ticket in tickets], rows, spec, lane) for spec in inputs}


def _join(arrays: list[Tensor], rows: int, spec: TensorSpec, lane: Lane) -> Tensor:
    axis = spec.batch_axis or 0
    if arrays[0].dtype == object:  # a buffer would keep the clients' strings alive after the answer
        return np.concatenate(arrays, axis=axis)
    shape = arrays[0].shape
    out = lane.buffer(spec.name, (*shape[:axis], rows, *shape[axis + 1 :]))
    return np.concatenate(arrays, axis=axis, out=out)


def split(tickets: Sequence[Ticket], rows: int, results: Mapping[str, Tensor], outputs: Sequence[TensorSpec]) -> list[dict[str, Tensor]]:
    """Each ticket's share of the outputs, in the order it asked for. Raises BackendFailure where an output has not `rows` rows."""
    if len(tickets) == 1:
        return [_wanted(tickets[0], results)]
    for spec in outputs:
        found = results[spec.name].shape
        if len(found) <= (spec.batch_axis or 0) or found[spec.batch_axis or 0] != rows:
            raise BackendFailure(f"output {spec.name!r} has shape {list(found)}, expected {rows} rows on axis {spec.batch_axis}")
    shares: list[dict[str, Tensor]] = []
    start = 0
    for ticket in tickets:
        stop = start + ticket.rows
        shares.append(_wanted(ticket, {spec.name: _rows(results[spec.name], spec.batch_axis or 0, start, stop) for spec in outputs}))
        start = stop
    return shares


def _rows(array: Tensor, axis: int, start: int, stop: int) -> Tensor:
    if axis == 0:
        return array[start:stop]
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _wanted(ticket: Ticket, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
    asked = ticket.request.outputs
    if not asked:
        return results if isinstance(results, dict) else dict(results)
    return {output.name: results[output.name] for output in asked}
