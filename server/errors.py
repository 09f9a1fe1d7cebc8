"""The error tree: what can go wrong, in the domain's words. It knows no HTTP and no gRPC; each edge has one table to its codes.

TidegateError
├── InvalidRequest            the client's request is wrong; sending it again won't help
│   ├── BodyTooLarge          over a limit on size
│   └── BodyTimeout           its bytes came too slowly
├── Superseded                a later wish took its place
├── Conflict                  can't be while something else is, which must end first
├── NotFound                  no such model, version, region or path
├── Unsupported               understood, and not something this server does
├── Unauthenticated           who are you
├── Denied                    we know who you are, and no
├── Unavailable               not now: worth trying again
│   ├── Overloaded            a limit is reached (names it, says when to come back)
│   ├── DeadlineExceeded      the answer would come too late
│   ├── ModelUnavailable      the model isn't ready, with the reason
│   └── Draining              the server is going down
├── Cancelled                 the client went away
├── BackendFailure            the model's run failed
│   ├── DeviceMemory          the GPU's memory doesn't hold what was asked for
│   └── DeviceLost            the GPU's context is broken: nothing runs in this process any more
├── ModelDefect               a repository entry that can't be served, with the reason
└── ConfigError               a setting that can't be used, with file and line
"""

from __future__ import annotations


class TidegateError(Exception):
    """Base of all. `reason` is the label under which metrics count it."""

    reason = "internal"


class InvalidRequest(TidegateError):
    reason = "invalid"


class BodyTooLarge(InvalidRequest):
    reason = "too_large"


class BodyTimeout(InvalidRequest):
    reason = "body_timeout"


class Superseded(TidegateError):
    reason = "superseded"


class Conflict(TidegateError):
    reason = "conflict"


class NotFound(TidegateError):
    reason = "not_found"


class Unsupported(TidegateError):
    reason = "unsupported"


class Unauthenticated(TidegateError):
    reason = "unauthenticated"


class Denied(TidegateError):
    reason = "denied"


class Unavailable(TidegateError):
    """Not now. `retry_after` is in seconds."""

    reason = "unavailable"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """A limit is reached; `limit` is the setting's name (queue.max_rows, limits.inflight_bytes, …)."""

    reason = "overloaded"

    def __init__(self, message: str, limit: str, retry_after: float = 1.0) -> None:
        super().__init__(f"{message} (limit: {limit})", retry_after)
        self.limit = limit


class DeadlineExceeded(Unavailable):
    reason = "deadline"


class ModelUnavailable(Unavailable):
    reason = "model_unavailable"


class Draining(Unavailable):
    reason = "draining"


class Cancelled(TidegateError):
    reason = "cancelled"


class BackendFailure(TidegateError):
    reason = "backend"


class DeviceMemory(BackendFailure):
    reason = "device_memory"


class DeviceLost(BackendFailure):
    """The GPU's context is broken. A process lane's child ends after it, and the next one begins with a new context."""

    reason = "device_lost"


class ModelDefect(TidegateError):
    """A repository entry that can't be served: the message says which file, what was expected and what was found."""

    reason = "model_defect"


class ConfigError(TidegateError):
    """A setting that can't be used: the message says which file and line, and what would be right."""

    reason = "config"
