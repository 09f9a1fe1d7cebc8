"""grpc.health.v1: what load balancers and Kubernetes' gRPC probes ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.edges.grpc.call import Call, admitted
from server.errors import NotFound
from server.gate import Gate, Operation
from server.protocol.head import shown
from server.protocol.proto.messages import HEALTH, INFERENCE, message_class, parse

_Request = message_class("grpc.health.v1.HealthCheckRequest")
_Response = message_class("grpc.health.v1.HealthCheckResponse")

SERVICES = frozenset(("", HEALTH, INFERENCE))
"""Of whom one may ask; "" is the server as a whole. All are as ready as it is."""


@dataclass(frozen=True, slots=True)
class Health:
    """`ready` says whether the server takes requests."""

    gate: Gate
    ready: Callable[[], bool]

    def check(self, body: bytes, call: Call) -> bytes:
        """Check: SERVING or NOT_SERVING. Raises NotFound for a service that isn't here, as the protocol has it."""
        service = self._asked(body, call)
        if service not in SERVICES:
            raise NotFound(f"unknown service {shown(service)}")
        return self._written("SERVING" if self.ready() else "NOT_SERVING")

    def watched(self, body: bytes, call: Call) -> Callable[[], bytes]:
        """Watch: what to send now, to be asked again and again and sent when it differs. An unknown service isn't an error here."""
        if self._asked(body, call) not in SERVICES:
            return lambda: self._written("SERVICE_UNKNOWN")
        return lambda: self._written("SERVING" if self.ready() else "NOT_SERVING")

    def _asked(self, body: bytes, call: Call) -> str:
        admitted(self.gate, call, Operation.HEALTH)
        service: str = parse(_Request, body).service
        return service

    def _written(self, status: str) -> bytes:
        answer: bytes = _Response(status=status).SerializeToString()
        return answer
