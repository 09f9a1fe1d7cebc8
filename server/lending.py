"""Tensors in clients' shared memory: inputs are read before a request goes on, outputs are written before its answer does.

A tensor is copied once, into memory of its own or out of the answer; large ones in a thread, so that the others don't wait for the copy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from server.errors import InvalidRequest, Overloaded, TidegateError
from server.messages import CancelHandle, InferRequest, InferResponse, OnResponse, Placed, Principal, Shared, SharedInput
from server.protocol.binary_codec import Part, raw_values, read_tensor
from server.protocol.encode import kind_of
from server.protocol.json_codec import byte_size_mismatch
from server.regions import Extent, Regions
from server.tensors import DTYPES, Tensor, elements

OFF_LOOP = 1 << 20  # bytes of a request or an answer that are copied in a thread: 0.1 ms of a loop
ALIGNMENT = 64

Infer: TypeAlias = Callable[[InferRequest, OnResponse], CancelHandle]
Copies: TypeAlias = Sequence[Callable[[], None]]


class Lending:
    """The stage before the others. `allowed` raises for a principal that may not use regions; `most` bounds the bytes that are read for
    requests that aren't answered yet."""

    def __init__(self, regions: Regions, allowed: Callable[[Principal], None], most: int) -> None:
        self.regions = regions
        self.most = most
        self.held = 0
        self._allowed = allowed

    def infer(self, request: InferRequest, shared: Shared, on_response: OnResponse, infer: Infer) -> CancelHandle:
        """Read what `shared` says and hand the request on to `infer`, as one without shared memory. Answers come to `on_response`, the
        outputs that lie in regions as Placed. Never raises."""
        loan = _Loan(self, request, shared, on_response)
        try:
            if request.principal is not None:
                self._allowed(request.principal)
            loan.begin(infer)
        except TidegateError as error:
            loan.fail(error)
        return loan


class _Loan:
    """One request and its answers; what the caller gets as its handle."""

    __slots__ = ("_ended", "_handle", "_later", "_lending", "_on_response", "_outputs", "_request", "_shared", "_size", "_writing")

    def __init__(self, lending: Lending, request: InferRequest, shared: Shared, on_response: OnResponse) -> None:
        self._lending = lending
        self._request = request
        self._shared = shared
        self._on_response = on_response
        self._outputs: dict[str, Extent] = {}
        self._handle: CancelHandle | None = None
        self._later: deque[tuple[InferResponse, bool]] = deque()  # answers that wait until the one before them is written
        self._writing = self._ended = False
        self._size = 0

    def begin(self, infer: Infer) -> None:
        """Read the inputs, then go on. Raises TidegateError."""
        lending, inputs = self._lending, self._shared.inputs
        self._outputs = {name: lending.regions.extent(at) for name, at in self._shared.outputs.items()}
        extents = [lending.regions.extent(item.at) for item in inputs]
        for item in inputs:
            _check_size(item, self._request.model)
        size = sum(item.at.size for item in inputs)
        if lending.held + size > lending.most:
            raise Overloaded(f"tensors read from shared memory hold all of {lending.most} bytes", "limits.inflight_bytes")
        lending.held += size
        self._size = size
        blocks = [_block(item.at.size) for item in inputs]
        copies = [partial(extent.read, block) for extent, block in zip(extents, blocks, strict=True)]
        _copy(copies, size, lambda error: self._read(blocks, infer, error))

    def _read(self, blocks: Sequence[memoryview], infer: Infer, error: TidegateError | None) -> None:
        request = self._request
        if self._ended:
            return
        try:
            if error is not None:
                raise error
            for item, block in zip(self._shared.inputs, blocks, strict=True):
                request.inputs[item.name] = _tensor(item, block)
        except TidegateError as failure:
            self.fail(failure)
            return
        request.shared = None
        self._handle = infer(request, self._respond)

    def fail(self, error: TidegateError) -> None:
        """End with an error that arose before the request went on."""
        self._pass(InferResponse(self._request.model, self._request.version, self._request.id, error=error), True)

    def cancel(self) -> None:
        """The answer isn't wanted any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._lending.held -= self._size
        self._size = 0

    def _respond(self, response: InferResponse, final: bool) -> None:
        if self._writing:
            self._later.append((response, final))
        elif response.error is not None or not self._outputs.keys() & response.outputs.keys():
            self._pass(response, final)
        else:
            self._write(response, final)

    def _write(self, response: InferResponse, final: bool) -> None:
        outputs, extents = response.outputs, self._outputs
        shared = {name: array for name, array in outputs.items() if name in extents}
        raws = {name: raw_values(array) for name, array in shared.items()}
        try:
            placed = [Placed(name, kind_of(name, array).name, array.shape) for name, array in shared.items()]
            for name, raw in raws.items():
                if len(raw) > self._shared.outputs[name].size:
                    raise _too_small(name, self._shared.outputs[name].size, len(raw))
        except TidegateError as error:
            self._written(response, final, error)
            return
        response.outputs = {name: array for name, array in outputs.items() if name not in shared}
        response.placed = tuple(placed)
        self._writing = True
        copies = [partial(extents[name].write, raw) for name, raw in raws.items()]
        _copy(copies, sum(map(len, raws.values())), lambda error: self._written(response, final, error))

    def _written(self, response: InferResponse, final: bool, error: TidegateError | None) -> None:
        self._writing = False
        response.error = error
        self._pass(response, final)
        while self._later and not self._writing:
            self._respond(*self._later.popleft())

    def _pass(self, response: InferResponse, final: bool) -> None:
        if self._ended:
            return
        if final:
            self._end()
        self._on_response(response, final)


def _copy(copies: Copies, size: int, done: Callable[[TidegateError | None], None]) -> None:
    """Run `copies`, of `size` bytes together, and call `done` in the loop: at once, or later where they run in a thread."""
    if size <= OFF_LOOP:
        done(_run(copies))
        return
    running = asyncio.get_running_loop().run_in_executor(None, _run, copies)
    running.add_done_callback(lambda future: done(future.result()))


def _run(copies: Copies) -> TidegateError | None:
    try:
        for copy in copies:
            copy()
    except TidegateError as error:
        return error
    return None


def _check_size(item: SharedInput, model: str) -> None:
    kind, count, size = DTYPES[item.datatype], elements(item.shape), item.at.size
    if size != count * kind.size if kind.size else size < 4 * count:
        raise byte_size_mismatch(item.name, kind, count, size, model)


def _block(size: int) -> memoryview:
    """Aligned memory, not zeroed: it is filled before anyone looks at it."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory.data[start : start + size]


def _tensor(item: SharedInput, block: memoryview) -> Tensor:
    kind = DTYPES[item.datatype]
    return read_tensor(Part(item.name, kind, item.shape, elements(item.shape), 0, len(block)), block, 0)


def _too_small(name: str, size: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"shared memory size specified with the request for output '{name}' ({size} bytes) should be at least {needed} bytes "
        "to hold the results"
    )
