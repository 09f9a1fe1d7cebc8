"""The engine turns the requests of one model version into runs: schedule, gather, run, split, answer.

It doesn't know where a request came from or which lane kind runs it. All of it happens in one event loop; only a lane leaves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from functools import partial
from time import monotonic

from server.engine.admission import group_of, rows_of
from server.engine.batch import gather, split
from server.engine.batcher import Batcher, Cut
from server.engine.request_queue import RequestQueue, Ticket
from server.engine.scheduler import Scheduler
from server.engine.supervisor import Supervisor
from server.errors import BackendFailure, DeadlineExceeded, Draining, InvalidRequest, Overloaded, TidegateError
from server.lanes.arbiter import Device
from server.lanes.base import Lane, RunResult
from server.messages import BatchFacts, InferRequest, InferResponse, Layout, ModelKey, OnResponse
from server.metrics.recorder import Figures
from server.tensors import Tensor, TensorSpec

DRAIN_POLL = 0.005  # seconds; polling keeps an event object off the hot path
KNOWN_LAYOUTS = 1024  # conclusions about request layouts that are kept; the codecs share a Layout between like requests


class Engine:
    """One version at one precision: `max_rows` 0 means unbatched, each request a run of its own."""

    def __init__(
        self, key: ModelKey, lanes: Sequence[Lane], batcher: Batcher, figures: Figures, *, max_queue_rows: int, batched: bool
    ) -> None:
        self.key = key
        self.lanes = list(lanes)
        self.inputs: tuple[TensorSpec, ...] = lanes[0].inputs
        self.outputs: tuple[TensorSpec, ...] = lanes[0].outputs
        self.max_rows = batcher.max_rows if batched else 0
        self.figures = figures
        self._output_names = frozenset(spec.name for spec in self.outputs)
        self._max_queue_rows = max_queue_rows
        self._known: dict[Layout, tuple[int, Hashable]] = {}
        self._queue = RequestQueue()
        self._running = 0
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(self._loop, self._queue, batcher, self.lanes, self._start)
        self.supervisor = Supervisor(self, key, self._loop)

    @property
    def queue_rows(self) -> int:
        return self._queue.rows

    def submit(self, request: InferRequest, on_response: OnResponse) -> Ticket:
        """Queue a request; `on_response` is called in the loop with its answer. Raises InvalidRequest where it doesn't fit the model,
        Overloaded where the queue is full, Draining after close."""
        request.rows, group = self._known.get(request.layout) or self._examine(request.layout)
        if request.outputs:
            self._check_outputs(request)
        if self._queue.rows + request.rows > self._max_queue_rows:
            raise Overloaded(f"model '{self.key.name}': exceeds maximum queue size of {self._max_queue_rows} rows", "queue.max_rows")
        if self.supervisor.guarded:
            self.supervisor.check(request)
        if not self._open:
            raise Draining(f"model '{self.key.name}' version {self.key.version} is being unloaded")
        ticket = Ticket(request, on_response, group)
        request.queued = monotonic()
        self._queue.push(ticket)
        self._scheduler.arm()
        return ticket

    def _examine(self, layout: Layout) -> tuple[int, Hashable]:
        rows = rows_of(layout, self.key.name, self.inputs, self.max_rows)
        if len(self._known) >= KNOWN_LAYOUTS:
            self._known.clear()
        known = self._known[layout] = (rows, group_of(layout, self.inputs))
        return known

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
            self._scheduler.over(0.0)
            return
        self._running += 1
        begun = monotonic()
        facts = BatchFacts(cut.rows, len(cut.tickets), cut.reason, self.key.precision, lane.name, begun, begun, begun)
        try:
            inputs = gather(cut.tickets, cut.rows, self.inputs, lane)
        except MemoryError:
            error = BackendFailure(f"model '{self.key.name}': no memory to gather a batch of {cut.rows} rows")
            self._finish(cut, lane, facts, 0.0, RunResult({}, begun, begun, error))
            return
        lane.submit(inputs, cut.rows, partial(self._finish, cut, lane, facts, monotonic() - begun))

    def _finish(self, cut: Cut, lane: Lane, facts: BatchFacts, gather_seconds: float, result: RunResult) -> None:
        if result.loss is not None:
            self._running -= 1
            self._scheduler.withdraw(lane)
            self._scheduler.over(result.finished - result.started)
            self.supervisor.lost(cut.tickets, lane, result.loss)
            return
        facts.started, facts.finished = result.started, result.finished
        error, shares = result.error, None
        if error is None:
            try:
                shares = split(cut.tickets, cut.rows, result.outputs, self.outputs)
            except TidegateError as failure:
                error = failure
        self._running -= 1
        if not (lane in self.supervisor.cases and self.supervisor.answered(lane)):
            self._scheduler.release(self._successor(lane))
        self._scheduler.over(facts.finished - facts.started)
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

    def share_device(self, device: Device, width: float) -> None:
        """Run on `device` only in turn with others that do, each run on `width` of its slots."""
        self._scheduler.share = device.join(width, self._scheduler.granted)

    def rerun(self, tickets: list[Ticket], lane: Lane) -> None:
        """Run tickets whose lane was lost in another. The supervisor's, as are `fail` to `overdue`."""
        self._scheduler.unasked()
        self._start(Cut(tickets, sum(ticket.rows for ticket in tickets)), lane)

    def fail(self, ticket: Ticket, error: TidegateError) -> None:
        self._answer(ticket, error=error)

    def release(self, lane: Lane) -> None:
        self._scheduler.release(lane)

    def withdraw(self, lane: Lane) -> None:
        self._scheduler.withdraw(lane)

    def overdue(self, now: float) -> list[Ticket]:
        return self._queue.overdue(now)

    async def drain(self) -> None:
        """Refuse new requests and wait until all that wait have been answered."""
        self._open = False
        while self._running or self._queue.rows or self.supervisor.busy:
            await asyncio.sleep(DRAIN_POLL)

    def abandon(self) -> None:
        """Answer what still waits with Draining."""
        self._open = False
        for ticket in self._queue.clear():
            self._answer(ticket, error=Draining(f"model '{self.key.name}' version {self.key.version} is being unloaded"))
        self.supervisor.abandon()
        if self._scheduler.share is not None:
            self._scheduler.share.leave(monotonic())
            self._scheduler.share = None

    def close(self) -> None:
        """Give the lanes back. Blocks until their runs are over: call it off the loop."""
        for lane in self.lanes:
            lane.close()
        self.supervisor.close()
