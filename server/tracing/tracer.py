"""A request's times, taken when its answer is ready to leave; what is made of them is the sender's business, in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from server.messages import BatchFacts, InferRequest, InferResponse
from server.tracing.settings import Traced, TraceSettings

MAX_TEXT = 256


class Trace(NamedTuple):
    """One traced request, without its tensors. Times as in InferRequest and BatchFacts; `total` and `encode` are seconds, from the last
    byte to the answer and at its end."""

    traced: Traced
    model: str
    version: str
    request_id: str
    tenant: str
    rows: int
    received: float
    queued: float
    decode: float
    total: float
    encode: float
    batch: BatchFacts | None = None
    reason: str = ""
    error: str = ""

    def facts(self) -> dict[str, str | int]:
        """What is known of it, by name."""
        facts: dict[str, str | int] = {"model": self.model, "version": self.version, "request_id": self.request_id}
        facts.update(rows=self.rows, tenant=self.tenant)
        if (batch := self.batch) is not None:
            facts.update(precision=batch.precision, lane=batch.lane, batch_rows=batch.rows, close_reason=str(batch.reason))
        return {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in facts.items() if value}

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """The phases that it reached: name, begin, end. Gather includes the hand-over to the lane, as in the logs."""
        batch, end = self.batch, self.received + self.total
        encoded = end - self.encode
        yield "decode", self.received, self.received + self.decode
        if batch is not None and self.queued:
            yield "queue", self.queued, batch.cut
            yield "gather", batch.cut, batch.started
            yield "compute", batch.started, batch.finished
            yield "scatter", batch.finished, encoded
        elif self.queued:
            yield "queue", self.queued, encoded
        yield "encode", encoded, end


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
        error = response.error
        reason, text = (error.reason, str(error)) if error is not None else ("", "")
        names = (response.model, response.version or request.version, request.id, request.tenant)
        times = (request.received, request.queued, request.decode_seconds, total, encode_seconds)
        self._sender.put(Trace(traced, *names, request.rows, *times, response.batch, reason, text))
        return traced.trace_id
