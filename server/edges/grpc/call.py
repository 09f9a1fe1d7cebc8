"""The seam between methods and a transport: what a method may know of its call."""

from __future__ import annotations

from typing import Protocol

from server.gate import Gate, Operation
from server.messages import Deadline, Principal


class Call(Protocol):
    """One call. `metadata` answers a header's value by its lower-case name; `certificate` is the subject of the client's certificate,
    None where the transport checked none; `deadline` is when the client stops waiting."""

    @property
    def certificate(self) -> str | None: ...

    @property
    def deadline(self) -> Deadline | None: ...

    def metadata(self, name: str) -> str | None: ...


def admitted(gate: Gate, call: Call, operation: Operation) -> Principal:
    """Who calls. Raises Unauthenticated or Denied where they may not do `operation`."""
    principal = gate.principal(call.metadata("authorization"), call.certificate)
    gate.check(principal, operation)
    return principal
