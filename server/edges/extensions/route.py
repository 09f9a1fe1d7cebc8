"""What every cold route shares: a JSON answer, and the gate asked by what a request shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import orjson
from fastapi import Request, Response

from server.errors import InvalidRequest
from server.gate import Gate, Operation
from server.messages import Principal

Allow: TypeAlias = Callable[[Request, Operation], Principal]
"""Who asks. Raises Unauthenticated or Denied where this request may not do that."""


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def allowing(gate: Gate) -> Allow:
    """Ask `gate` by a request's Authorization header."""

    def allow(request: Request, operation: Operation) -> Principal:
        principal = gate.principal(request.headers.get("authorization"))
        gate.check(principal, operation)
        return principal

    return allow


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object, {} for an empty one. Raises InvalidRequest."""
    body = await request.body()
    try:
        wish = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request body isn't JSON: {error}") from error
    if not isinstance(wish, dict):
        raise InvalidRequest(f"expected a JSON object as the request body, got {type(wish).__name__}")
    return wish
