"""A request's times, taken when its answer is ready to leave; what is made of them is the sender's business, in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from server.messages import InferRequest, InferResponse
from server.ring import unix_offset
from server.tracing.settings import Traced, TraceSettings

MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class Trace:
    """One traced request, without its tensors. `phases` are (name, begin, end) in Unix seconds, and so are `begin` and `end`."""

    traced: Traced
    model: str
    facts: dict[str, str | int]
    begin: float
    end: float
    phases: tuple[tuple[str, float, float], ...]
    reason: str = ""
    error: str = ""


class Sender(Protocol):
    """Takes traces, or drops and counts them."""

    def put(self, trace: Trace) -> None: ...


class Tracer:
    """Asked for each answer; costs a look at the settings where none is traced."""

    def __init__(self, settings: TraceSettings, sender: Sender) -> None:
        self.settings = settings
        self._sender = sender

    def finished(self, request: InferRequest, response: InferResponse, total: float, encode_seconds: float) -> str:
        """A request has its answer, `total` seconds after its last byte. The id of its trace, "" where it isn't traced."""
        if not self.settings.active:
            return ""
        traced = self.settings.choose(response.model, request.trace.traceparent if request.trace else "")
        if traced is None:
            return ""
        offset, batch, error = unix_offset(), response.batch, response.error
        facts: dict[str, str | int] = {
            "model": response.model[:MAX_TEXT],
            "version": (response.version or request.version)[:MAX_TEXT],
            "request_id": request.id[:MAX_TEXT],
            "rows": request.rows,
            "tenant": request.tenant[:MAX_TEXT],
        }
        if batch is not None:
            facts.update(precision=batch.precision, lane=batch.lane, batch_rows=batch.rows, close_reason=str(batch.reason))
        begin = request.received + offset
        phases = tuple((name, start + offset, end + offset) for name, start, end in _phases(request, response, total, encode_seconds))
        told = (error.reason, str(error)[:MAX_TEXT]) if error is not None else ("", "")
        facts = {name: value for name, value in facts.items() if value not in ("", 0)}
        self._sender.put(Trace(traced, response.model[:MAX_TEXT], facts, begin, begin + total, phases, *told))
        return traced.trace_id


def _phases(request: InferRequest, response: InferResponse, total: float, encode_seconds: float) -> Iterator[tuple[str, float, float]]:
    """The phases that the request reached. Gather includes the hand-over to the lane, as in the logs."""
    batch, end = response.batch, request.received + total
    encoded = end - encode_seconds
    yield "decode", request.received, request.received + request.decode_seconds
    if batch is not None and request.queued:
        yield "queue", request.queued, max(request.queued, batch.cut)
        yield "gather", batch.cut, max(batch.cut, batch.started)
        yield "compute", batch.started, batch.finished
        yield "scatter", batch.finished, max(batch.finished, encoded)
    elif request.queued:
        yield "queue", request.queued, max(request.queued, encoded)
    yield "encode", encoded, end
