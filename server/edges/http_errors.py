"""The one table from the error tree to HTTP: status, headers, and the body `{"error": …}`."""

from __future__ import annotations

import math
from http import HTTPStatus

import orjson

from server.errors import (
    BodyTimeout,
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

# Looked up along the class's ancestry, so a new kind of error has its parent's status until it gets its own.
STATUS: dict[type[BaseException], int] = {
    BodyTimeout: 408,
    BodyTooLarge: 413,
    InvalidRequest: 400,
    ModelDefect: 400,
    NotFound: 404,
    Superseded: 409,
    Conflict: 409,
    Unsupported: 501,
    Unauthenticated: 401,
    Denied: 403,
    Unavailable: 503,
    Cancelled: 400,
    TidegateError: 500,
}


def status_of(error: TidegateError) -> int:
    """The HTTP status of an error, 500 where nothing nearer is known."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def headers_of(error: TidegateError) -> dict[str, str]:
    """What an error says in headers: when to come back, how to authenticate, which encodings are taken."""
    if isinstance(error, Unavailable):
        return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, Unsupported):
        return {"accept-encoding": "gzip, deflate"}
    return {}


def body_of(error: TidegateError) -> bytes:
    """`{"error": "…"}` as bytes."""
    return orjson.dumps({"error": str(error)})


def error_response(error: TidegateError, status: int | None = None) -> bytes:
    """A whole HTTP/1.1 response for an error; `status` overrides the table."""
    code = status or status_of(error)
    body = body_of(error)
    lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers_of(error).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
