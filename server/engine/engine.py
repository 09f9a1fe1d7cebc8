"""The engine turns the requests of one model version into runs: schedule, gather, run, split, answer.

It doesn't know where a request came from or which lane kind runs it. All of it happens in one event loop; only a lane leaves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from time import monotonic

from server.engine.admission import Fit, Terms, bytes_of, fit, with_values
from server.engine.batch import fullness, gather, split
from server.engine.batcher import Batcher, Cut
from server.engine.request_queue import RequestQueue, Ticket
from server.engine.scheduler import Scheduler
from server.errors import BackendFailure, DeadlineExceeded, Draining, InvalidRequest, Overloaded, TidegateError
from server.lanes.base import Lane, RunResult
from server.messages import BatchFacts, InferRequest, InferResponse, Layout, ModelKey, OnResponse
from server.metrics.recorder import Figures
from server.padding import NO_PADDING
from server.tensors import Tensor, TensorSpec

DRAIN_POLL = 0.005  # seconds; polling keeps an event object off the hot path
KNOWN_LAYOUTS = 1024  # conclusions about request layouts that are kept; the codecs share a Layout between like requests


class Engine:
    """One version at one precision: `max_rows` 0 means unbatched, each request a run of its own."""

    def __init__(self, key: ModelKey, lanes: Sequence[Lane], batcher: Batcher, figures: Figures, *, terms: Terms, batched: bool) -> None:
        self.key = key
        self.lanes = list(lanes)
        self.inputs: tuple[TensorSpec, ...] = lanes[0].inputs
        self.outputs: tuple[TensorSpec, ...] = lanes[0].outputs
        self.max_rows = batcher.max_rows if batched else 0
        self.figures = figures
        self.terms = terms
        self.offered_rows = 0  # those refused for want of room or time too: what the model was asked for
        self.padding = terms.padding if batched else NO_PADDING
        self._shared = tuple(spec.name for spec in self.inputs if spec.batch_axis is None) if batched else ()
        self._output_names = frozenset(spec.name for spec in self.outputs)
        self._known: dict[Layout, Fit] = {}
        self._queue = RequestQueue()
        self._running = 0
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(self._loop, self._queue, batcher, self.lanes, self._start)

    @property
    def queue_rows(self) -> int:
        return self._queue.rows

    @property
    def queue_bytes(self) -> int:
        return self._queue.bytes

    def submit(self, request: InferRequest, on_response: OnResponse) -> Ticket:
        """Queue a request; `on_response` is called in the loop with its answer. Raises InvalidRequest where it doesn't fit the model,
        Overloaded where the queue is full, Draining after close."""
        fitted = self._known.get(request.layout) or self._examine(request.layout)
        request.rows, group, request.length, _ = fitted
        if self._shared:
            group = with_values(group, request, self._shared)
        if request.outputs:
            self._check_outputs(request)
        self.offered_rows += request.rows
        size = bytes_of(request, fitted)
        self._check_room(request, size)
        if not self._open:
            raise Draining(f"model '{self.key.name}' version {self.key.version} is being unloaded")
        ticket = Ticket(request, on_response, group, size)
        request.queued = monotonic()
        self._queue.push(ticket)
        self._scheduler.arm()
        return ticket

    def _examine(self, layout: Layout) -> Fit:
        fitted = fit(layout, self.key.name, self.inputs, self.max_rows, self.padding)
        if len(self._known) >= KNOWN_LAYOUTS:
            self._known.clear()
        self._known[layout] = fitted
        return fitted

    def _check_room(self, request: InferRequest, size: int) -> None:
        queue, terms = self._queue, self.terms
        if queue.rows + request.rows > terms.max_rows:
            raise Overloaded(f"model '{self.key.name}': exceeds maximum queue size of {terms.max_rows} rows", "queue.max_rows")
        if terms.max_bytes is not None and queue.bytes and queue.bytes + size > terms.max_bytes:  # a larger one may wait alone
            raise Overloaded(f"model '{self.key.name}': exceeds maximum queue size of {terms.max_bytes} bytes", "queue.max_bytes")

    def _check_outputs(self, request: InferRequest) -> None:
        for output in request.outputs:
            if output.name not in self._output_names:
                raise InvalidRequest(
                    f"unexpected inference output '{output.name}' for model '{self.key.name}'. "
                    f"The model's outputs are: {sorted(self._output_names)}"
                )

    def _start(self, cut: Cut, lane: Lane) -> None:
        for ticket in cut.expired:
            self._answer(ticket, error=DeadlineExceeded("Request timeout expired: the request waited past its deadline", retry_after=1.0))
        if not cut.tickets:
            self._scheduler.release(lane)
            return
        self._running += 1
        begun = monotonic()
        facts = BatchFacts(cut.rows, len(cut.tickets), cut.reason, self.key.precision, lane.name, begun, begun, begun)
        try:
            inputs = gather(cut.tickets, cut.rows, self.inputs, lane, self.padding)
        except MemoryError:
            error = BackendFailure(f"model '{self.key.name}': no memory to gather a batch of {cut.rows} rows")
            self._finish(cut, lane, facts, 0.0, RunResult({}, begun, begun, error))
            return
        if self.padding:
            facts.length, facts.padding = fullness(cut.tickets, cut.rows, inputs, self.padding)
        lane.submit(inputs, cut.rows, partial(self._finish, cut, lane, facts, monotonic() - begun))

    def _finish(self, cut: Cut, lane: Lane, facts: BatchFacts, gather_seconds: float, result: RunResult) -> None:
        facts.started, facts.finished = result.started, result.finished
        error, shares = result.error, None
        if error is None:
            try:
                shares = split(cut.tickets, cut.rows, result.outputs, self.outputs, self.padding)
            except TidegateError as failure:
                error = failure
        self._running -= 1
        self._scheduler.release(self._successor(lane))
        self.figures.batch(facts, gather_seconds, monotonic() - facts.finished)
        for position, ticket in enumerate(cut.tickets):
            if not ticket.cancelled:
                self._answer(ticket, shares[position] if shares else {}, error, facts)

    def _successor(self, lane: Lane) -> Lane:
        heir = lane.successor()
        if heir is None:
            return lane
        self.lanes[self.lanes.index(lane)] = heir
        return heir

    def _answer(
        self,
        ticket: Ticket,
        outputs: dict[str, Tensor] | None = None,
        error: TidegateError | None = None,
        facts: BatchFacts | None = None,
    ) -> None:
        request = ticket.request
        response = InferResponse(self.key.name, self.key.version, request.id, outputs or {}, error=error, batch=facts)
        try:
            ticket.on_response(response, True)
        except Exception as failure:  # noqa: BLE001 - one edge's fault must not take the answers of a batch's other requests
            self._loop.call_exception_handler({"message": "an edge failed on an answer", "exception": failure})

    async def drain(self) -> None:
        """Refuse new requests and wait until all that wait have been answered."""
        self._open = False
        while self._running or self._queue.rows:
            await asyncio.sleep(DRAIN_POLL)

    def abandon(self) -> None:
        """Answer what still waits with Draining."""
        self._open = False
        for ticket in self._queue.clear():
            self._answer(ticket, error=Draining(f"model '{self.key.name}' version {self.key.version} is being unloaded"))

    def close(self) -> None:
        """Give the lanes back. Blocks until their runs are over: call it off the loop."""
        for lane in self.lanes:
            lane.close()
