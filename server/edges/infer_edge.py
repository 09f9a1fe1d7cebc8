"""What all HTTP connections share: the door for inference, the codecs, the gate, the limits, and the bytes in flight."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from server.dataplane import DataPlane
from server.edges.offload.json_worker import JsonWorker
from server.gate import Gate, Operation
from server.messages import Principal
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.encode import Encoder
from server.protocol.head import Layouts
from server.protocol.json_forms import JsonDecoder

KNOWN_TARGETS = 1024
PIECE = 256 * 1024  # most bytes of a large body that one read takes
WANTED = frozenset(
    (
        *(b"inference-header-content-length", b"content-length", b"content-encoding", b"accept-encoding"),
        *(b"authorization", b"traceparent", b"expect", b"x-tidegate-tenant"),
    )
)
REPEATABLE = WANTED - {b"content-encoding", b"expect"}
_INFER_URL = re.compile(rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer/?(?:\?.*)?")


class Target(NamedTuple):
    """Whom an inference URL names; `version` is empty where the router chooses."""

    model: str
    version: str


class Caller(NamedTuple):
    """Who asks, whom the gate has let through, and for which tenant. Equal headers mean equal callers: its answers are settled at start."""

    principal: Principal
    tenant: str


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Bounds of the HTTP edge; sizes in bytes, times in seconds. `min_rate` is the bytes/s under which a body is too slow."""

    max_body: int
    max_json_body: int
    json_offload: int
    inflight_bytes: int
    body_timeout: float
    keep_alive: float
    pipeline_depth: int
    pipeline_bytes: int
    max_header_bytes: int
    min_rate: float = 256 * 1024


class Inflight:
    """Bytes of requests that are held in memory, over all connections. Over the limit, reads pause until some are answered."""

    __slots__ = ("_waiting", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: list[Callable[[], None]] = []

    def take(self, count: int) -> bool:
        """Count `count` bytes; False where the limit is passed and reading should pause."""
        self.used += count
        return self.used <= self.limit

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once there's room again."""
        self._waiting.append(resume)

    def give(self, count: int) -> None:
        self.used -= count
        if self._waiting and self.used <= self.limit:
            waiting, self._waiting = self._waiting, []
            for resume in waiting:
                resume()


@dataclass(slots=True)
class InferEdge:
    """The shared parts, handed to each connection."""

    dataplane: DataPlane
    gate: Gate
    limits: EdgeLimits
    loop: asyncio.AbstractEventLoop
    json_worker: JsonWorker
    layouts: Layouts
    decoder: BinaryDecoder = field(init=False)
    json_decoder: JsonDecoder = field(init=False)
    encoder: Encoder = field(default_factory=Encoder)
    inflight: Inflight = field(init=False)
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(PIECE)))
    """Where a piece lies that is handed on at once. One loop, one piece at a time."""
    wanted: frozenset[bytes] = WANTED
    """The headers that are looked at, in small letters, and those of them that requests on a connection may all repeat."""
    repeatable: frozenset[bytes] = REPEATABLE
    sticky: Mapping[str, bytes] = field(default_factory=dict)
    """By model: the header that its requests' sticky key stands in."""
    infers: bool = True
    """False on a port where nobody may ask a model: no URL names one there."""
    answered: float = 0.0
    """When an answer last left, on whichever connection: time.monotonic."""
    _targets: dict[bytes, Target | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.decoder = BinaryDecoder(self.layouts, self.dataplane.takes)
        self.json_decoder = JsonDecoder(self.layouts)
        self.inflight = Inflight(self.limits.inflight_bytes)

    def admitted(self, fields: Mapping[bytes, bytes]) -> Caller:
        """Who sends these headers, and may infer. Raises Unauthenticated or Denied."""
        authorization, named = fields.get(b"authorization"), fields.get(b"x-tidegate-tenant")
        principal = self.gate.principal(None if authorization is None else authorization.decode("latin-1"))
        self.gate.check(principal, Operation.INFER)
        return Caller(principal, self.gate.tenant(principal, None if named is None else named.decode("latin-1")))

    def look_for(self, headers: Mapping[str, str]) -> bool:
        """Look also at these headers, by model, for sticky keys; whether other headers are wanted than before."""
        self.sticky = {model: header.encode("latin-1") for model, header in headers.items()}
        more, before = frozenset(self.sticky.values()), self.wanted
        self.wanted, self.repeatable = WANTED | more, REPEATABLE | (more - WANTED)
        return self.wanted != before

    def without_inference(self) -> InferEdge:
        """The same for another port, where nobody may ask a model; the bytes in flight are counted together."""
        other = replace(self, infers=False, _targets={})
        other.inflight = self.inflight
        return other

    def target(self, url: bytes) -> Target | None:
        """The model that an inference URL names, None for any other URL. Remembered: clients ask the same few."""
        try:
            return self._targets[url]
        except KeyError:
            if len(self._targets) >= KNOWN_TARGETS:
                self._targets.clear()
            found = self._targets[url] = _parse_target(url) if self.infers else None
            return found


def _parse_target(url: bytes) -> Target | None:
    match = _INFER_URL.fullmatch(url)
    if match is None:
        return None
    model, version = (unquote_to_bytes(part or b"").decode("utf-8", "replace") for part in match.groups())
    return Target(model, version)
