"""What happened last, for whoever looks into an incident."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from server.config import VERSION
from server.edges.extensions.route import allowing
from server.gate import Gate, Operation
from server.ring import Ring

NDJSON = "application/x-ndjson"


def add_incident(app: FastAPI, gate: Gate, ring: Ring) -> None:
    """Add the route to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.post("/admin/incident", tags=["admin"], summary="The last arrivals, batches, lane and routing events, as JSON lines")
    def incident(request: Request) -> Response:  # in a thread: tens of thousands of lines would stop the loop for 0.1 s
        allow(request, Operation.INCIDENT)
        return Response(b"".join(ring.lines(VERSION)), media_type=NDJSON)
