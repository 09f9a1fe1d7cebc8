"""What travels through the server: one value a hop.

InferRequest and InferResponse are slotted but not frozen: a frozen dataclass assigns its fields through object.__setattr__,
which doubles the cost of the one object that every request makes. Nobody changes a request after the dataplane has admitted it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

from server.errors import TidegateError
from server.tensors import Tensor

Scalar: TypeAlias = str | int | float | bool
Deadline: TypeAlias = float  # seconds of time.monotonic
NO_PARAMETERS: Mapping[str, Scalar] = MappingProxyType({})


def _no_parameters() -> Mapping[str, Scalar]:
    return NO_PARAMETERS


class ModelKey(NamedTuple):
    """What is served: a public name, one of its versions, and the precision that runs."""

    name: str
    version: str
    precision: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `kind` is anonymous, token or certificate; `grants` are the operation classes that the gate lets through."""

    name: str
    kind: str
    grants: frozenset[str]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context as it came in: the raw `traceparent` header."""

    traceparent: str


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The names, datatypes and shapes of a request's inputs, in order.

    Compared by identity: a codec hands the same Layout to requests whose heads are the same bytes, so that what was concluded
    about one (is it valid for this model, how many rows) holds for all and is looked up, not computed.
    """

    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


class RequestedOutput(NamedTuple):
    """An output that the client asked for; `classification` > 0 asks for the top-k classes in place of the tensor."""

    name: str
    classification: int = 0


class RegionSlice(NamedTuple):
    """A stretch of a client's shared memory: `size` bytes of the region of this name, from `offset` on."""

    region: str
    offset: int
    size: int


class SharedInput(NamedTuple):
    """An input whose values lie in shared memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    at: RegionSlice


@dataclass(frozen=True, slots=True)
class Shared:
    """What of a request lies in shared memory: inputs to be read, and where outputs are to be written."""

    inputs: tuple[SharedInput, ...]
    outputs: Mapping[str, RegionSlice]


class Placed(NamedTuple):
    """An output that was written into shared memory: the answer describes it and doesn't hold it."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class BatchFacts:
    """How a batch was made and ran, shared by all its answers. Times are time.monotonic; `reason` says why it was cut.

    `length` is the longest request's (see InferRequest) and so each padded row's; `padding` is the share of the run's cells that were
    padding."""

    rows: int
    requests: int
    reason: str
    precision: str
    lane: str
    cut: float
    started: float
    finished: float
    length: int = 1
    padding: float = 0.0


@dataclass(slots=True)
class InferRequest:
    """One inference request, whichever edge it came by. `outputs` empty means all; `received` is time.monotonic at the last byte,
    `queued` at submission; `decode_seconds` is what the edge spent on the body.

    `length` is the cells that a row has along the padded axes, 1 where nothing is padded. `priority` is as the client gave it: 1 is the
    highest, 0 the lowest that the model has. `tenant` is who it's for, "" where nobody said. `explain` asks for the facts of its run.
    `sticky` is the key by which its model's traffic is shared out: at first only what the edge found in a header.
    `shared` is what still lies in shared memory: its inputs aren't among `inputs` before they are read.
    """

    model: str
    inputs: dict[str, Tensor]
    layout: Layout
    version: str = ""
    id: str = ""
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=_no_parameters)
    principal: Principal | None = None
    trace: TraceContext | None = None
    received: float = 0.0
    decode_seconds: float = 0.0
    queued: float = 0.0
    deadline: Deadline | None = None
    rows: int = 0
    length: int = 1
    priority: int = 0
    tenant: str = ""
    explain: bool = False
    shared: Shared | None = None
    sticky: str = ""


@dataclass(slots=True)
class InferResponse:
    """One answer: outputs in the order asked for, or the error. `parameters` are facts about how it was made (explain), `placed` the
    outputs that were written into shared memory and aren't among `outputs`."""

    model: str
    version: str
    id: str = ""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Scalar] = field(default_factory=_no_parameters)
    error: TidegateError | None = None
    batch: BatchFacts | None = None
    placed: tuple[Placed, ...] = ()


OnResponse: TypeAlias = Callable[[InferResponse, bool], None]
"""Called in the event loop with (response, final), one or more times for each request, the last time with final=True."""


class CancelHandle(Protocol):
    """What `submit` gives back: cancel() lets the request fall out of its queue; its answer, if one comes, isn't delivered."""

    def cancel(self) -> None: ...
