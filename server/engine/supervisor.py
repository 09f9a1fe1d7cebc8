"""Brings lost lanes back and finds the request that took them: does what `recovery` decides. All in the event loop, but for opening.

It holds no lane that serves: a fresh one is released to the scheduler, a lost one is opened again at once, in a thread that lives as long
as the engine does (the kernel ends a lane's process with the thread that started it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, Protocol

from server.engine.recovery import DOWN_AFTER, REFUSED_FOR, Backoff, Case, Docket, Refusals, Stage, Verdict, fingerprint
from server.engine.request_queue import Ticket
from server.errors import BackendFailure, DeadlineExceeded, Draining, ModelDefect, ModelUnavailable, TidegateError
from server.lanes.base import Lane, Loss, LossReason
from server.messages import InferRequest, ModelKey

OVERDUE_POLL = 0.05  # seconds between looks at the deadlines of lost batches while no lane is left
RETRY_DOWN = 5.0  # seconds that clients of a model without lanes are told to wait

OnEvent = Callable[[str, dict[str, Any]], None]
"""Told of lane_lost, lane_restarted, input_refused, lanes_down and lanes_up, with facts."""


class Host(Protocol):
    """What the engine lets its supervisor do."""

    lanes: list[Lane]

    def rerun(self, tickets: list[Ticket], lane: Lane) -> None:
        """Run these once more, in that lane."""
        ...

    def fail(self, ticket: Ticket, error: TidegateError) -> None:
        """Answer with an error."""
        ...

    def release(self, lane: Lane) -> None:
        """The lane serves from now on."""
        ...

    def withdraw(self, lane: Lane) -> None:
        """The lane is gone: no batch for it."""
        ...

    def overdue(self, now: float) -> list[Ticket]:
        """Take out those that wait past their deadline; all with `now` infinite."""
        ...


class Supervisor:
    """`key` is whose lanes they are. `on_event` may be set by whoever wants to know. `guarded` says that a request must pass `check`:
    nearly never. `cases` are the lanes that run a batch under suspicion."""

    def __init__(self, host: Host, key: ModelKey, loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.cases: dict[Lane, Case[Ticket]] = {}
        self.restarts: dict[str, int] = dict.fromkeys(LossReason, 0)
        self.on_event: OnEvent = lambda event, facts: None
        self._host = host
        self._loop = loop
        self._docket: Docket[Ticket] = Docket()
        self._retries: list[Case[Ticket]] = []
        self._backoff = Backoff()
        self._refusals = Refusals()
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix=f"lanes-{key.name}")
        self._quarantine: Lane | None = None
        self._isolating = False
        self._since: dict[Lane, float] = {}
        self._lost_at: dict[Lane, float] = {}
        self._closed = False
        self.down = ""
        self.guarded = False
        for lane in host.lanes:
            self._serve(lane)

    @property
    def busy(self) -> bool:
        """Whether batches wait for a lane that isn't there yet."""
        return bool(self._retries or len(self._docket) or self.cases)

    def check(self, request: InferRequest) -> None:
        """Raises BackendFailure for an input that killed its process a while ago, ModelUnavailable while the lanes are down."""
        if self.down:
            raise ModelUnavailable(f"model '{self.key.name}': lane restarting: {self.down}", retry_after=RETRY_DOWN)
        left = self._refusals.left(request.inputs, monotonic())
        if left:
            raise BackendFailure(f"model '{self.key.name}': this very input killed the model's process; it's refused for {left:.0f} s more")
        self.guarded = len(self._refusals) > 0

    def lost(self, tickets: list[Ticket], lane: Lane, loss: Loss) -> None:
        """`lane` was lost while it ran `tickets`."""
        if self._closed:
            self._retries.append(Case(tickets))
            self.abandon()
            return
        case = self.cases.pop(lane, None) or Case(tickets)
        case.members = self._live(tickets)
        first = case.stage is Stage.SERVING
        verdict = self._docket.lost(case) if case.members else Verdict()
        for ticket in verdict.blamed:
            self._blame(ticket, loss)
        for ticket in verdict.failed:
            text = f"model '{self.key.name}': its process {loss.text}, {case.trail.deaths} times on this batch, whatever was left out of it"
            self._host.fail(ticket, BackendFailure(text))
        if verdict.retry is not None:
            self._retries.append(verdict.retry)
        self._gone(lane, loss, first or bool(verdict.failed))

    def answered(self, lane: Lane) -> bool:
        """The case that `lane` ran was answered. True where the lane is the quarantine lane, which serves nobody else."""
        case = self.cases.pop(lane)
        self._docket.answered(case)
        if lane is not self._quarantine:
            return False
        self._loop.call_soon(self._examine)
        return True

    def abandon(self) -> None:
        """Open no lane any more, and answer what waits for one with Draining."""
        self._closed = True
        waiting = [ticket for case in self._retries for ticket in case.members] + self._docket.clear()
        self._retries.clear()
        for ticket in waiting:
            if not ticket.cancelled:
                self._host.fail(ticket, Draining(f"model '{self.key.name}' is being unloaded"))

    def close(self) -> None:
        """Wait for the thread that opens lanes. Blocks; call it when the lanes are closed."""
        self._closed = True
        self._keeper.shutdown(cancel_futures=True)
        if self._quarantine is not None:
            self._quarantine.close()

    def _live(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Those that still want an answer and can have it in time; the late ones are told."""
        now, live = monotonic(), []
        for ticket in tickets:
            deadline = ticket.request.deadline
            if ticket.cancelled:
                continue
            if deadline is not None and deadline <= now:
                self._host.fail(ticket, DeadlineExceeded("Request timeout expired: its lane was lost and isn't back yet", retry_after=1.0))
            else:
                live.append(ticket)
        return live

    def _blame(self, ticket: Ticket, loss: Loss) -> None:
        self._backoff.explained()
        self._refusals.add(fingerprint(ticket.request.inputs), monotonic())
        self.guarded = True
        text = f"model '{self.key.name}': the model's process was killed by this input: {loss.text}"
        self._host.fail(ticket, BackendFailure(f"{text}. It's refused for {REFUSED_FOR:.0f} s"))
        self.on_event("input_refused", {"request": ticket.request.id, "how": loss.text, "level": "error"})

    def _gone(self, lane: Lane, loss: Loss, unexplained: bool) -> None:
        """A lane is no more: open the next one, the quarantine lane only while there's work for it. `unexplained` losses are waited
        after; those on the way to the input that is to blame aren't."""
        self.restarts[loss.reason] += 1
        self.on_event("lane_lost", {"lane": lane.name, "reason": str(loss.reason), "how": loss.text, "level": "error"})
        lived = monotonic() - self._since.pop(lane, 0.0)
        if lane is self._quarantine:
            self._quarantine = None
        else:
            self._lost_at[lane] = monotonic()
            self._renew(lane, self._backoff.lost(lived) if unexplained else 0.0)
        self._examine()

    def _serve(self, lane: Lane) -> None:
        self._since[lane] = monotonic()
        lane.watch(partial(self._lost_idle, lane))

    def _lost_idle(self, lane: Lane, loss: Loss) -> None:
        if not self._closed and (lane in self._since or lane is self._quarantine):
            self._host.withdraw(lane)
            self._gone(lane, loss, True)

    def _renew(self, lane: Lane, delay: float) -> None:
        if not self._since:
            self._watch_retries()
            if self._backoff.losses >= DOWN_AFTER:
                self._go_down(f"{self._backoff.losses} losses in a row, the next try in {delay:.1f} s")
        then = partial(self._renewed, lane)
        if delay:
            self._loop.call_later(delay, self._open, lane, then)
        else:  # before the quarantine lane: those that serve go first
            self._open(lane, then)

    def _open(self, lane: Lane, then: Callable[[asyncio.Future[Lane]], None]) -> None:
        """Open one like `lane` in the keeper's thread."""
        if not self._closed:
            self._loop.run_in_executor(self._keeper, self._open_now, lane).add_done_callback(then)

    def _open_now(self, lane: Lane) -> Lane:
        fresh = lane.renew(lambda: not self._closed)
        if self._closed:
            fresh.close()
        return fresh

    def _renewed(self, lane: Lane, opened: asyncio.Future[Lane]) -> None:
        fresh = self._result(opened, lane)
        if self._closed:
            return
        if fresh is None:
            self._renew(lane, self._backoff.lost(0.0))
            return
        self._host.lanes[self._host.lanes.index(lane)] = fresh
        self._serve(fresh)
        self.on_event("lane_restarted", {"lane": fresh.name, "after_s": round(monotonic() - self._lost_at.pop(lane), 3)})
        if self.down:
            self.down = ""
            self.on_event("lanes_up", {})
        case = self._retries.pop(0) if self._retries else None
        if case is None or not self._run(case, fresh):
            self._host.release(fresh)

    def _result(self, opened: asyncio.Future[Lane], lane: Lane) -> Lane | None:
        """The fresh lane, None where it couldn't be opened."""
        if opened.cancelled():
            return None
        try:
            return opened.result()
        except ModelDefect as defect:
            if not self._closed:
                self.on_event("lane_not_opened", {"lane": lane.name, "why": str(defect), "level": "error"})
            return None

    def _run(self, case: Case[Ticket], lane: Lane) -> bool:
        """Run a case; False where nobody waits for it any more."""
        case.members = self._live(case.members)
        if case.members:
            self.cases[lane] = case
            self._host.rerun(case.members, lane)
        return bool(case.members)

    def _examine(self) -> None:
        """Give the quarantine lane its next case, open it where there's none, close it where there's no case."""
        lane = self._quarantine
        if lane is None:
            if len(self._docket) and not self._isolating and not self._closed:
                self._isolating = True
                self._open(self._host.lanes[0], self._isolated)
            return
        while (case := self._docket.next()) is not None:
            if self._run(case, lane):
                return
        self._quarantine = None
        self._loop.run_in_executor(self._keeper, lane.close)

    def _isolated(self, opened: asyncio.Future[Lane]) -> None:
        self._isolating = False
        lane = self._result(opened, self._host.lanes[0])
        if self._closed:
            return
        if lane is None:
            text = f"model '{self.key.name}': its process died on this batch, and another couldn't be started"
            for ticket in self._docket.clear():
                self._host.fail(ticket, BackendFailure(text))
            return
        self._quarantine = lane
        lane.watch(partial(self._lost_idle, lane))
        self._examine()

    def _watch_retries(self) -> None:
        """No lane is left: tell those whose batch was lost and whose deadline passes. The queue's own are told as always (Expiry)."""
        if self._since or self._closed:
            return
        for case in self._retries:
            case.members = self._live(case.members)
        self._loop.call_later(OVERDUE_POLL, self._watch_retries)

    def _go_down(self, why: str) -> None:
        """Too many losses in a row: nobody is left to wait for it."""
        waiting = [*self._host.overdue(float("inf")), *(ticket for case in self._retries for ticket in self._live(case.members))]
        self._retries.clear()
        for ticket in waiting:
            self._host.fail(ticket, ModelUnavailable(f"model '{self.key.name}': lane restarting: {why}", retry_after=RETRY_DOWN))
        if not self.down:
            self.on_event("lanes_down", {"why": why, "level": "error"})
        self.down = why
        self.guarded = True
