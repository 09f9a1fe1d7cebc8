"""Sequences: models whose state goes from one request to the next. The state is kept here, fed as inputs and taken from outputs.

A request names its sequence (`sequence_id`, `sequence_start`, `sequence_end`). One request of a sequence is in hand at a time, in the order
in which they came; those of several sequences share runs, each with its own rows of the state. What ends a request other than its answer
(an error, a client that goes away) leaves the state as it was before it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TypeAlias

import numpy as np

from server.engine.admission import fit
from server.engine.engine import Engine
from server.errors import InvalidRequest, Overloaded, TidegateError
from server.messages import CancelHandle, InferRequest, InferResponse, Layout, OnResponse, RequestedOutput
from server.repository.declare.sections import SequenceConfig
from server.tensors import Tensor, TensorSpec

KNOWN_LAYOUTS = 256
MAX_WAITING = 256  # requests of one sequence

Key: TypeAlias = tuple[str, str | int]
"""Tenant and sequence_id: a tenant can't touch another's sequence."""


@dataclass(slots=True, eq=False)
class _Kept:
    """One sequence: its state by input, the request in hand, those that wait for it, and when it was last used."""

    key: Key
    rows: int
    state: dict[str, Tensor]
    used: float
    turn: _Turn | None = None
    waiting: deque[_Turn] = field(default_factory=deque)


class Sequences:
    """What answers for a stateful model, before its engine. See server.router.table.Front. `inputs` and `outputs` are without the state."""

    def __init__(self, engine: Engine, config: SequenceConfig) -> None:
        states = config.state
        fed, taken = {state.input for state in states}, {state.output for state in states}
        self.inputs = tuple(spec for spec in engine.inputs if spec.name not in fed)
        self.outputs = tuple(spec for spec in engine.outputs if spec.name not in taken)
        self.adopt(engine)
        self.pairs = {state.output: state.input for state in states}
        self._state = {spec.name: spec for spec in engine.inputs if spec.name in fed}
        self._config = config
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()  # the longest unused first
        self._layouts: dict[Layout, Layout] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def adopt(self, engine: Engine) -> None:
        """Run on another engine from the next request of each sequence on: one with the same tensors, whose state goes on."""
        self.key, self.terms, self.figures, self.max_rows = engine.key, engine.terms, engine.figures, engine.max_rows
        self.engine = engine

    @property
    def active(self) -> int:
        """Sequences that are kept."""
        return len(self._kept)

    @property
    def running(self) -> int:
        """Requests that aren't answered yet."""
        return sum((kept.turn is not None) + len(kept.waiting) for kept in self._kept.values())

    def submit(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        """Take a request's turn in its sequence. Raises InvalidRequest where the request doesn't fit, Overloaded at a limit."""
        request.rows, _, request.length, _ = fit(request.layout, self.key.name, self.inputs, self.max_rows)
        self._check_outputs(request.outputs)
        key, start, end = self._read(request)
        self._expire()
        kept = self._kept.get(key)
        if kept is None:
            kept = self._begun(key, request.rows, start)
        elif len(kept.waiting) >= MAX_WAITING:
            raise Overloaded(f"model '{self.key.name}': sequence {key[1]} has {MAX_WAITING} requests that wait", "sequence.waiting")
        elif kept.rows != request.rows and not start:
            raise InvalidRequest(
                f"inference request for sequence {key[1]} to model '{self.key.name}' has {request.rows} rows; the sequence has {kept.rows}"
            )
        kept.used = monotonic()
        self._kept.move_to_end(key)
        turn = _Turn(self, kept, request, on_response, start=start, end=end)
        kept.waiting.append(turn)
        self.advance(kept)
        turn.submitted = True
        return turn

    def _read(self, request: InferRequest) -> tuple[Key, bool, bool]:
        """The parameters of a request, in Triton's words where they're wrong."""
        parameters = request.parameters
        number = parameters.get("sequence_id", 0)
        where = f"to model '{self.key.name}'"
        if isinstance(number, bool) or not isinstance(number, int | str):
            raise InvalidRequest(
                f"parameter 'sequence_id' of an inference request {where} must be a whole number or a string, got {number!r}"
            )
        if not number:
            raise InvalidRequest(f"inference request {where} must specify a non-zero or non-empty correlation ID")
        if isinstance(number, str) and len(number) > 128:
            raise InvalidRequest(f"string correlation ID cannot be longer than 128 bytes for an inference request {where}")
        flags = [parameters.get(name, False) for name in ("sequence_start", "sequence_end")]
        for name, flag in zip(("sequence_start", "sequence_end"), flags, strict=True):
            if not isinstance(flag, bool):
                raise InvalidRequest(f"parameter '{name}' of an inference request {where} must be true or false, got {flag!r}")
        return (request.tenant, number), bool(flags[0]), bool(flags[1])

    def _begun(self, key: Key, rows: int, start: bool) -> _Kept:
        if not start:
            raise self._must_start(key)
        if len(self._kept) >= self._config.max_sequences:
            limit = f"model '{self.key.name}': exceeds maximum number of {self._config.max_sequences} sequences"
            raise Overloaded(limit, "sequence.max_sequences")
        kept = self._kept[key] = _Kept(key, rows, {}, monotonic())
        if self._timer is None:
            self._timer = self._loop.call_later(self._config.idle_timeout, self._look)
        return kept

    def _must_start(self, key: Key) -> InvalidRequest:
        return InvalidRequest(
            f"inference request for sequence {key[1]} to model '{self.key.name}' must specify the START flag on the first request of "
            f"the sequence; one that isn't used for {self._config.idle_timeout:g} s is forgotten"
        )

    def _check_outputs(self, outputs: Sequence[RequestedOutput]) -> None:
        names = {spec.name for spec in self.outputs}
        for output in outputs:
            if output.name not in names:
                raise InvalidRequest(
                    f"unexpected inference output '{output.name}' for model '{self.key.name}'. The model's outputs are: {sorted(names)}"
                )

    def advance(self, kept: _Kept) -> None:
        """Run the next request of a sequence whose last is over. Raises what the engine refuses it with while its `submit` lasts."""
        while kept.turn is None and kept.waiting:
            turn = kept.turn = kept.waiting.popleft()
            try:
                turn.run(self._request(turn.request, self._fresh(turn.request.rows) if turn.start else kept.state))
            except TidegateError as error:
                kept.turn = None
                if not turn.submitted:
                    self._close_unbegun(kept)
                    raise
                turn.refuse(error)

    def _fresh(self, rows: int) -> dict[str, Tensor]:
        return {name: np.zeros(_with_rows(spec, rows), spec.dtype.numpy) for name, spec in self._state.items()}

    def _request(self, request: InferRequest, state: Mapping[str, Tensor]) -> InferRequest:
        """The engine's request: with the state, whose outputs are always asked for."""
        layout = self._layouts.get(request.layout)
        if layout is None:
            if len(self._layouts) >= KNOWN_LAYOUTS:
                self._layouts.clear()
            more = tuple((name, self._state[name].datatype, array.shape) for name, array in state.items())
            layout = self._layouts[request.layout] = Layout(request.layout.tensors + more)
        outputs = request.outputs and (*request.outputs, *(RequestedOutput(name) for name in self.pairs))
        return replace(request, inputs={**request.inputs, **state}, layout=layout, outputs=outputs)

    def keep(self, kept: _Kept, turn: _Turn, response: InferResponse) -> None:
        """An answer is there: its state is the sequence's from now on, and nobody else's business."""
        kept.rows = turn.request.rows
        # A copy: what is answered is a view of the whole run's memory.
        kept.state = {name: np.array(response.outputs[output]) for output, name in self.pairs.items()}
        response.outputs = {name: array for name, array in response.outputs.items() if name not in self.pairs}

    def over(self, kept: _Kept, *, ended: bool) -> None:
        """The request in hand is over: the next one's turn has come. What came after an end begins anew, or is refused."""
        kept.turn, kept.used = None, monotonic()
        if ended:
            kept.state = {}
        self._close_unbegun(kept)
        self.advance(kept)

    def gone(self, kept: _Kept, turn: _Turn) -> None:
        """A request was cancelled."""
        if kept.turn is turn:
            self.over(kept, ended=False)
        elif turn in kept.waiting:
            kept.waiting.remove(turn)

    def _close_unbegun(self, kept: _Kept) -> None:
        """A sequence without a state has ended, or couldn't be begun: only one that begins it goes on with it."""
        while not kept.state and kept.waiting and not kept.waiting[0].start:
            kept.waiting.popleft().refuse(self._must_start(kept.key))
        if not kept.state and not kept.waiting:
            self._ended(kept)

    def _ended(self, kept: _Kept) -> None:
        if self._kept.get(kept.key) is kept:
            del self._kept[kept.key]

    def _look(self) -> None:
        """The timer: forget what wasn't used for too long, and look again when the next will be."""
        self._timer = None
        self._expire()
        if self._kept:
            oldest = next(iter(self._kept.values()))
            self._timer = self._loop.call_later(max(0.01, oldest.used + self._config.idle_timeout - monotonic()), self._look)

    def _expire(self) -> None:
        least = monotonic() - self._config.idle_timeout
        for kept in list(self._kept.values()):
            if kept.used > least:
                return
            if kept.turn is None and not kept.waiting:
                self._ended(kept)
            else:
                kept.used = monotonic()
                self._kept.move_to_end(kept.key)


class _Turn:
    """One request in its sequence; the handle that cancels it."""

    __slots__ = ("_front", "_handle", "_kept", "_on_response", "_over", "end", "request", "start", "submitted")

    def __init__(self, front: Sequences, kept: _Kept, request: InferRequest, on_response: OnResponse, *, start: bool, end: bool) -> None:
        self.request = request
        self.start = start
        self.end = end
        self.submitted = False
        self._front = front
        self._kept = kept
        self._on_response = on_response
        self._handle: CancelHandle | None = None
        self._over = False

    def run(self, request: InferRequest) -> None:
        """Submit it to the engine. Raises as Engine.submit does."""
        handle = self._front.engine.submit(request, self._answered)
        self.request.queued = request.queued
        if not self._over:
            self._handle = handle

    def _answered(self, response: InferResponse, final: bool) -> None:
        if self._over:
            return
        self._over = True
        good = response.error is None
        try:
            if good:
                self._front.keep(self._kept, self, response)
            self._on_response(response, final)
        finally:
            self._front.over(self._kept, ended=self.end and good)

    def refuse(self, error: TidegateError) -> None:
        """It couldn't be run when its turn came."""
        self._over = True
        key = self._front.key
        self._on_response(InferResponse(key.name, key.version, self.request.id, error=error), True)

    def cancel(self) -> None:
        """Give up its turn."""
        if self._over:
            return
        self._over = True
        if self._handle is not None:
            self._handle.cancel()
        self._front.gone(self._kept, self)


def _with_rows(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    return tuple(rows if index == spec.batch_axis else axis for index, axis in enumerate(spec.shape))
