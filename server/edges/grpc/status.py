"""The one table from the error tree to gRPC: code, text and trailing metadata. Beside http_errors, in the same terms."""

from __future__ import annotations

from server.errors import (
    BodyTooLarge,
    Cancelled,
    Conflict,
    Denied,
    InvalidRequest,
    ModelDefect,
    NotFound,
    Superseded,
    TidegateError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

MAX_TEXT = 2048
"""Bytes of a status text. It travels as a header, where one may take three, and clients refuse 8 KiB of headers."""

# Looked up along the class's ancestry, so a new kind of error has its parent's code until it gets its own.
CODES: dict[type[BaseException], str] = {
    BodyTooLarge: "RESOURCE_EXHAUSTED",
    InvalidRequest: "INVALID_ARGUMENT",
    ModelDefect: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    Superseded: "ABORTED",
    Conflict: "FAILED_PRECONDITION",
    Unsupported: "UNIMPLEMENTED",
    Unauthenticated: "UNAUTHENTICATED",
    Denied: "PERMISSION_DENIED",
    Unavailable: "UNAVAILABLE",
    Cancelled: "CANCELLED",
    TidegateError: "INTERNAL",
}


def code_of(error: TidegateError) -> str:
    """The name of an error's status code, INTERNAL where nothing nearer is known."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def text_of(error: TidegateError) -> str:
    """What an error says, cut where it's too long for a status."""
    text = str(error)
    raw = text.encode("utf-8", "backslashreplace")
    return text if len(raw) <= MAX_TEXT else f"{raw[:MAX_TEXT].decode('utf-8', 'ignore')} …"


def trailers_of(error: TidegateError) -> tuple[tuple[str, str], ...]:
    """What an error says in trailing metadata: when to come back, in the header that gRPC's retry policies read."""
    if isinstance(error, Unavailable):
        return (("grpc-retry-pushback-ms", str(max(1, round(error.retry_after * 1000)))),)
    return ()
