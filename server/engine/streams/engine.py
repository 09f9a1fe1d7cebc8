"""The engine of a decoupled model: each request is a run of its own and may be answered any number of times, as its answers come.

Whoever takes them isn't overrun: while a Stream is held, the lane makes only the few answers more that it may be ahead. What a request has
been told stays told: a lane lost in mid-stream is that request's error, and isn't tried again.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

from server.engine.batcher import Cut
from server.engine.engine import Engine
from server.engine.request_queue import Ticket
from server.errors import BackendFailure, Unsupported
from server.lanes.base import Lane, RunResult
from server.lanes.process.streaming import StreamingLane
from server.messages import BatchFacts, InferRequest, InferResponse, OnResponse


class Stream:
    """The handle of a request to a decoupled model, and what its ticket calls with each answer."""

    __slots__ = ("_held", "_on_response", "_owed", "lane", "since", "ticket", "told", "wanted")

    def __init__(self, on_response: OnResponse, wanted: tuple[str, ...]) -> None:
        self._on_response = on_response
        self.wanted = wanted
        self.ticket: Ticket | None = None
        self.lane: StreamingLane | None = None
        self.told = 0
        self.since = 0.0  # when the lane could begin its next answer, as far as it's known here
        self._held = False
        self._owed = 0

    def __call__(self, response: InferResponse, final: bool) -> None:
        self._on_response(response, final)

    def cancel(self) -> None:
        """Fall out of the queue; in a run already, it's stopped at its next answer."""
        if self.ticket is not None:
            self.ticket.cancel()
        if self.lane is not None:
            self.lane.stop()

    def hold(self, *, held: bool) -> None:
        """Whether whoever takes the answers has no room for more."""
        self._held = held
        if not held and self._owed and self.lane is not None:
            owed, self._owed = self._owed, 0
            self.since = monotonic()
            self.lane.go_on(owed)

    def taken(self) -> None:
        """An answer was handed on."""
        self.told += 1
        self.since = monotonic()
        if self.lane is None:
            return
        if self._held:
            self._owed += 1
        else:
            self.lane.go_on()


class StreamingEngine(Engine):
    """See Engine. `submit` is for those who can take one answer only: it refuses."""

    def submit(self, request: InferRequest, on_response: OnResponse) -> Ticket:
        """Raises Unsupported, in the words of both of Triton's edges."""
        raise Unsupported(
            "HTTP end point doesn't support models with decoupled transaction policy, and "
            "ModelInfer RPC doesn't support models with decoupled transaction policy: "
            f"ask model '{self.key.name}' by ModelStreamInfer, or by generate_stream"
        )

    def stream(self, request: InferRequest, on_response: OnResponse) -> Stream:
        """As Engine.submit; `on_response` is called for each answer, and once more, without outputs, when there are no more."""
        stream = Stream(on_response, tuple(output.name for output in request.outputs))
        stream.ticket = super().submit(request, stream)
        request.outputs = ()  # each answer's are picked here, and the end has none
        return stream

    def _start(self, cut: Cut, lane: Lane) -> None:
        stream = cut.tickets[0].on_response
        assert isinstance(stream, Stream)
        assert isinstance(lane, StreamingLane)
        stream.lane = lane
        super()._start(cut, lane)

    def _finish(self, cut: Cut, lane: Lane, facts: BatchFacts, gather_seconds: float, result: RunResult) -> None:
        stream = cut.tickets[0].on_response
        assert isinstance(stream, Stream)
        if not result.final:
            self._tell(stream, facts, result)
            return
        stream.lane = None
        if result.loss is None or stream.told:
            self._count_last(stream, result, cancelled=cut.tickets[0].cancelled)
        if result.loss is not None and stream.told:
            if not cut.tickets[0].cancelled:
                text = f"model '{self.key.name}': {result.loss.text} after {stream.told} answers"
                self._answer(cut.tickets[0], error=BackendFailure(text))
            cut = replace(cut, tickets=[])
        super()._finish(cut, lane, facts, gather_seconds, result)

    def _count_last(self, stream: Stream, result: RunResult, *, cancelled: bool) -> None:
        """The word that a request gets no more answers is a response too, without outputs."""
        outcome = "cancel" if cancelled else "fail" if result.error is not None else "empty_response"
        self.figures.responded(stream.told, outcome, max(0.0, result.finished - (stream.since or result.started)), 0.0)

    def _tell(self, stream: Stream, facts: BatchFacts, result: RunResult) -> None:
        ticket = stream.ticket
        if ticket is None or ticket.cancelled:
            return
        facts.started, facts.finished = result.started, result.finished
        outputs = {name: result.outputs[name] for name in stream.wanted} if stream.wanted else result.outputs
        if not stream.told:
            self.figures.began(monotonic() - ticket.request.received)
        try:
            stream(InferResponse(self.key.name, self.key.version, ticket.request.id, outputs, batch=facts), False)
        finally:
            told = stream.told
            stream.taken()
            self.figures.responded(told, "success", result.finished - result.started, stream.since - result.finished)
