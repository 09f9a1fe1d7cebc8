"""The log of what changed, as JSON or as server-sent events that go on until the client leaves or the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

import orjson
from fastapi import FastAPI, Query, Request, Response
from starlette.responses import StreamingResponse

from server.edges.extensions.route import JSONResponse, allowing
from server.errors import Unavailable
from server.gate import Gate, Operation
from server.state.events import Events, as_json

EVENT_STREAM = "text/event-stream"
PING = 15.0  # seconds of silence after which a comment is sent, so that no proxy takes the connection for dead
MOST = 1000  # events of one answer, and of one look by a stream


def add_events(app: FastAPI, gate: Gate, events: Events) -> None:
    """Add GET /admin/events to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.get("/admin/events", tags=["admin"], summary="What was changed, by whom and why: JSON, or server-sent events")
    async def log(
        request: Request,
        after: Annotated[int, Query(ge=0, lt=2**63, description="Only events with a higher number.")] = 0,
        follow: Annotated[bool, Query(description="Server-sent events that go on, as with Accept: text/event-stream.")] = False,
        most: Annotated[int, Query(ge=1, le=MOST, description="Events at the most, the oldest first; a stream goes on.")] = MOST,
    ) -> Response:
        allow(request, Operation.EVENTS)
        if not follow and EVENT_STREAM not in request.headers.get("accept", ""):
            return JSONResponse({"events": [as_json(event) for event in await events.since(after, most)]})
        await events.since(after, 0)  # what can't be read is said by the status
        seen = request.headers.get("last-event-id", "")
        start = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 19 else after
        return StreamingResponse(_stream(events, start), media_type=EVENT_STREAM, headers={"cache-control": "no-store"})


async def _stream(events: Events, after: int) -> AsyncIterator[bytes]:
    """Ends where the log can't be read: the client comes back, and is told by the status."""
    with suppress(Unavailable), events.listening() as listener:
        while not listener.ended:
            while found := await events.since(after, MOST):
                after = found[-1].number
                yield b"".join(b"id: %d\ndata: %s\n\n" % (event.number, orjson.dumps(as_json(event))) for event in found)
            try:
                await asyncio.wait_for(listener.next(), PING)
            except TimeoutError:
                yield b":\n\n"
