"""What becomes of a stream: the states of RFC 9113, section 5.1, as a server sees them, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from server.protocol.http2.codes import MAX_WINDOW, ErrorCode, StreamFault


class State(StrEnum):
    """`idle` and `closed` streams have no Stream: it's known by their number which they are. Push isn't there, so nothing is reserved."""

    OPEN = "open"
    HALF_CLOSED_REMOTE = "half_closed_remote"  # the client has said all
    HALF_CLOSED_LOCAL = "half_closed_local"  # this side has
    CLOSED = "closed"


class Input(StrEnum):
    """What happens to a stream that was begun by HEADERS."""

    RECEIVE = "receive"  # DATA or HEADERS without END_STREAM
    RECEIVE_END = "receive_end"
    SEND = "send"
    SEND_END = "send_end"
    RESET = "reset"  # by either side


OPEN, R, L, C = State.OPEN, State.HALF_CLOSED_REMOTE, State.HALF_CLOSED_LOCAL, State.CLOSED
TABLE: Mapping[tuple[State, Input], State] = MappingProxyType(
    {
        (OPEN, Input.RECEIVE): OPEN,
        (OPEN, Input.RECEIVE_END): R,
        (OPEN, Input.SEND): OPEN,
        (OPEN, Input.SEND_END): L,
        (OPEN, Input.RESET): C,
        (R, Input.SEND): R,
        (R, Input.SEND_END): C,
        (R, Input.RESET): C,
        (L, Input.RECEIVE): L,
        (L, Input.RECEIVE_END): C,
        (L, Input.RESET): C,
    }
)
"""What isn't here is a fault."""


class ReceiveWindow:
    """Bytes that may still be received. What was used is given back once it's half of the whole, so that one frame serves many."""

    __slots__ = ("_used", "left", "whole")

    def __init__(self, whole: int) -> None:
        self.whole = self.left = whole
        self._used = 0

    def take(self, size: int) -> bool:
        """Note what came; False where it's more than there is."""
        self.left -= size
        return self.left >= 0

    def use(self, size: int) -> int:
        """Note what was used; the increment to be sent now, 0 for none yet."""
        self._used += size
        if self._used * 2 < self.whole:
            return 0
        increment, self._used = self._used, 0
        self.left += increment
        return increment


class Stream:
    """One stream. `send_window` is bytes that may still be sent, `expected` what content-length says of `received`, None without."""

    __slots__ = ("expected", "number", "received", "send_window", "state", "window")

    def __init__(self, number: int, send_window: int, receive_window: int) -> None:
        self.number = number
        self.state = State.OPEN
        self.send_window = send_window
        self.window = ReceiveWindow(receive_window)
        self.received = 0
        self.expected: int | None = None

    def step(self, event: Input) -> None:
        """Go on by the table. Raises StreamFault where that can't happen."""
        after = TABLE.get((self.state, event))
        if after is None:
            raise StreamFault(self.number, ErrorCode.STREAM_CLOSED, f"{event} on a stream that is {self.state}")
        self.state = after

    def count(self, size: int, *, ended: bool) -> None:
        """Note bytes of the body. Raises StreamFault where they aren't as many as content-length says."""
        self.received += size
        expected = self.expected
        if expected is not None and (self.received > expected or (ended and self.received != expected)):
            raise StreamFault(self.number, ErrorCode.PROTOCOL_ERROR, f"{self.received} bytes where content-length says {expected}")

    def widen(self, increment: int) -> None:
        """More may be sent. Raises StreamFault where the window would pass its largest."""
        if self.send_window + increment > MAX_WINDOW:
            raise StreamFault(self.number, ErrorCode.FLOW_CONTROL_ERROR, f"the window would be {self.send_window + increment}")
        self.send_window += increment
