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
from server.engine.batcher import Batcher, Cut, DropReason
from server.engine.decide.turns import Quotas
from server.engine.expiry import Expiry
from server.engine.request_queue import RequestQueue, Ticket
from server.engine.scheduler import Scheduler
from server.engine.supervisor import Supervisor
from server.errors import BackendFailure, DeadlineExceeded, Draining, InvalidRequest, Overloaded, TidegateError
from server.lanes.arbiter import Device
from server.lanes.base import Lane, RunResult
from server.messages import NO_PARAMETERS, BatchFacts, InferRequest, InferResponse, Layout, ModelKey, OnResponse
from server.metrics.figures import Figures
from server.padding import NO_PADDING
from server.tensors import Tensor, TensorSpec

DRAIN_POLL = 0.005  # seconds; polling keeps an event object off the hot path
KNOWN_LAYOUTS = 1024  # conclusions about request layouts that are kept; the codecs share a Layout between like requests
RESERVED_SHARE = 0.25  # of the objective: the most that's kept back for what surrounds a run
RESERVED_WITHOUT = 0.02  # seconds that stand for the objective where there's none
RESERVE_RISES, RESERVE_FALLS = 0.2, 0.01  # how fast what is kept back follows: as 1 run in 20 exceeds it

_WHY = {
    DropReason.EXPIRED: "the request waited past its deadline",
    DropReason.HOPELESS: "it can't be answered by its deadline any more",
    DropReason.GIVEN_UP: "others could be answered in its place",
}


class Engine:
    """One version at one precision. `batched` False means unbatched: each request a run of its own."""

    def __init__(self, key: ModelKey, lanes: Sequence[Lane], batcher: Batcher, figures: Figures, *, terms: Terms, batched: bool) -> None:
        self.key = key
        self._name, self._version, _ = key
        self.lanes = list(lanes)
        self.inputs: tuple[TensorSpec, ...] = lanes[0].inputs
        self.outputs: tuple[TensorSpec, ...] = lanes[0].outputs
        self.batcher = batcher
        self.max_rows = batcher.policy.max_rows if batched else 0
        self.figures = figures
        self.terms = terms
        self.padding = terms.padding if batched else NO_PADDING
        self._shared = tuple(spec.name for spec in self.inputs if spec.batch_axis is None) if batched else ()
        self.min_priority: int | None = None
        self._output_names = frozenset(spec.name for spec in self.outputs)
        self._quotas = Quotas(batcher.policy.tenants)
        self._sized = self._choosy = terms.limits.bytes is not None or bool(self._quotas)
        self._known: dict[Layout, Fit] = {}
        self._queue = RequestQueue(batcher.policy.length_buckets)
        self._priorities, self._patience = batcher.policy.priorities, batcher.policy.patience
        self._reserve = 0.0
        self._ended: dict[Lane, float] = {}  # when each lane's last run did
        self._most_reserved = RESERVED_SHARE * (batcher.policy.latency_objective or RESERVED_WITHOUT)
        self._running = 0
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(self._loop, self._queue, batcher, self.lanes, self._start, self._drop)
        self._expiry = Expiry(self._loop, self._queue, self._drop)
        self.supervisor = Supervisor(self, key, self._loop)

    @property
    def queue_rows(self) -> int:
        return self._queue.rows

    @property
    def queue_bytes(self) -> int:
        """Bytes of the inputs that wait."""
        return self._queue.bytes

    @property
    def queue_requests(self) -> int:
        """Requests that wait. Any thread."""
        return self._queue.waiting()

    @property
    def offered_rows(self) -> int:
        """All rows that ever came, those refused too."""
        return self._queue.arrived

    def submit(self, request: InferRequest, on_response: OnResponse) -> Ticket:
        """Queue a request; `on_response` is called in the loop with its answer. Raises InvalidRequest where it doesn't fit the model,
        Overloaded where a limit is reached, DeadlineExceeded where no answer could be in time, Draining after close."""
        fitted = self._known.get(request.layout) or self._examine(request.layout)
        request.rows, group, request.length, size = fitted
        if self._shared:
            group = with_values(group, request, self._shared)
        if request.outputs:
            self._check_outputs(request)
        if self.supervisor.guarded:
            self.supervisor.check(request)
        if not self._open:
            raise Draining(f"model '{self.key.name}' version {self.key.version} is being unloaded")
        request.queued = now = monotonic()
        ticket = Ticket(request, on_response, group, self._priorities, self._patience, self._reserve)
        ticket.size = size if size >= 0 else bytes_of(request)
        if self._choosy or ticket.deadline is not None or self._queue.rows + ticket.rows > self.terms.limits.rows:
            self._admit(ticket, now)
        self._queue.push(ticket)
        self._scheduler.arm()
        if ticket.deadline is not None:
            self._expiry.expect(ticket.deadline)
        return ticket

    def _admit(self, ticket: Ticket, now: float) -> None:
        """Raises Overloaded or DeadlineExceeded where a request that fits the model mustn't or needn't wait."""
        try:
            if self._queue.rows + ticket.rows > self.terms.limits.rows:
                raise self._overloaded(f"exceeds maximum queue size of {self.terms.limits.rows} rows", "queue.max_rows")
            if self._sized:
                self._check_bytes(ticket, now)
            if self.min_priority is not None and ticket.priority > self.min_priority:
                raise self._overloaded(f"takes only priorities up to {self.min_priority} now, got {ticket.priority}", "min_priority")
            if ticket.deadline is not None and self._scheduler.hopeless(ticket, now):
                self.figures.drops[DropReason.HOPELESS] += 1
                raise self._too_late(DropReason.HOPELESS)
        except (Overloaded, DeadlineExceeded):
            self._queue.arrived += ticket.rows  # refused load is load
            raise

    def _check_bytes(self, ticket: Ticket, now: float) -> None:
        most = self.terms.limits.bytes
        if most is not None and self._queue.bytes and self._queue.bytes + ticket.size > most:  # a larger one may wait alone
            raise self._overloaded(f"exceeds maximum queue size of {most} bytes", "queue.max_bytes")
        passed = self._quotas.charge(ticket.tenant, ticket.rows, ticket.size, now)
        if passed is not None:
            name, wait = passed
            what = f"model '{self.key.name}': tenant '{ticket.tenant}' is over its quota"
            raise Overloaded(what, f"queue.tenants.{ticket.tenant}.{name}", wait)

    def _overloaded(self, what: str, limit: str) -> Overloaded:
        return Overloaded(f"model '{self.key.name}': {what}", limit, self._backlog())

    def _too_late(self, why: DropReason) -> DeadlineExceeded:
        return DeadlineExceeded(f"Request timeout expired: {_WHY[why]}", self._backlog())

    def _backlog(self) -> float:
        """Seconds until what waits now is served: when to come back."""
        full = self.batcher.policy.max_rows
        return self._queue.rows * self.batcher.costs.mean(full) / full / len(self.lanes) if self.batcher.costs.known else 1.0

    def shed(self, min_priority: int | None) -> None:
        """Take only requests of priority 1 … `min_priority` from now on, and answer the others that wait; None takes all again."""
        self.min_priority = min_priority
        self._choosy = self._sized or min_priority is not None
        if min_priority is not None:
            for ticket in self._queue.below(min_priority):
                self._answer(ticket, error=self._overloaded(f"takes only priorities up to {min_priority} now", "min_priority"))

    def _examine(self, layout: Layout) -> Fit:
        fitted = fit(layout, self.key.name, self.inputs, self.max_rows, self.padding)
        if len(self._known) >= KNOWN_LAYOUTS:
            self._known.clear()
        self._known[layout] = fitted
        return fitted

    def _check_outputs(self, request: InferRequest) -> None:
        for output in request.outputs:
            if output.name not in self._output_names:
                raise InvalidRequest(
                    f"unexpected inference output '{output.name}' for model '{self.key.name}'. "
                    f"The model's outputs are: {sorted(self._output_names)}"
                )

    def _drop(self, cut: Cut) -> None:
        for ticket, why in cut.dropped:
            self.figures.drops[why] += 1
            self._answer(ticket, error=self._too_late(why))

    def _start(self, cut: Cut, lane: Lane) -> None:
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
        if result.loss is not None:
            self._running -= 1
            self._ended.pop(lane, None)
            self._scheduler.withdraw(lane)
            self._scheduler.over(result.finished - result.started)
            self.supervisor.lost(cut.tickets, lane, result.loss)
            return
        facts.started, facts.finished = result.started, result.finished
        error, shares = result.error, None
        if error is None:
            self.batcher.costs.observe(cut.rows, facts.finished - facts.started, cut.length)
            try:
                shares = split(cut.tickets, cut.rows, result.outputs, self.outputs, self.padding)
            except TidegateError as failure:
                error = failure
        self._running -= 1
        if not (lane in self.supervisor.cases and self.supervisor.answered(lane)):
            heir = lane.successor()
            self._scheduler.release(lane, lane if heir is None else self._succeeded(lane, heir))
        if self._scheduler.share is not None:
            self._scheduler.over(facts.finished - facts.started)
        self.figures.batch(facts, gather_seconds, monotonic() - facts.finished, error is not None)
        for position, ticket in enumerate(cut.tickets):
            if not ticket.cancelled:
                self._answer(ticket, shares[position] if shares else {}, error, facts)
        self._follow(monotonic() - facts.finished + facts.started - max(facts.cut, self._ended.get(lane, 0.0)))
        self._ended[lane] = facts.finished

    def _follow(self, around: float) -> None:
        """What surrounds a run (gathering, hops between threads, splitting, answering) comes out of a request's deadline as well."""
        behind = around - self._reserve
        self._reserve += (RESERVE_RISES if behind > 0 else RESERVE_FALLS) * behind
        self._reserve = min(self._reserve, self._most_reserved)

    def _succeeded(self, lane: Lane, heir: Lane) -> Lane:
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
        response = InferResponse(self._name, self._version, request.id, outputs or {}, NO_PARAMETERS, error, facts)
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
        self._start(Cut(tickets, sum(ticket.rows for ticket in tickets), max(ticket.length for ticket in tickets)), lane)

    def fail(self, ticket: Ticket, error: TidegateError) -> None:
        self._answer(ticket, error=error)

    def release(self, lane: Lane) -> None:
        self._scheduler.release(lane, lane)

    def withdraw(self, lane: Lane) -> None:
        self._scheduler.withdraw(lane)

    def overdue(self, now: float) -> list[Ticket]:
        return self._queue.overdue(now)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (self._running or self._queue.rows or self.supervisor.busy)

    async def drain(self) -> None:
        """Refuse new requests and wait until all that wait have been answered."""
        self._open = False
        while not self.idle:
            await asyncio.sleep(DRAIN_POLL)

    def abandon(self) -> None:
        """Answer what still waits with Draining."""
        self._open = False
        for ticket in self._queue.clear():
            self._answer(ticket, error=Draining(f"model '{self.key.name}' version {self.key.version} is being unloaded"))
        self._expiry.stop()
        self.supervisor.abandon()
        if self._scheduler.share is not None:
            self._scheduler.share.leave(monotonic())
            self._scheduler.share = None

    def close(self) -> None:
        """Give the lanes back. Blocks until their runs are over: call it off the loop."""
        for lane in self.lanes:
            lane.close()
        self.supervisor.close()
