"""The admin edge: all of /admin by FastAPI, for those whom the gate lets through."""

from __future__ import annotations

from fastapi import FastAPI

from server.controlplane import ControlPlane
from server.edges.admin.admission import add_admission
from server.edges.admin.events import add_events
from server.edges.admin.incident import add_incident
from server.edges.admin.precision import add_precision
from server.gate import Gate
from server.ring import Ring
from server.state.changes import Changes


def add_admin(app: FastAPI, gate: Gate, ring: Ring, control: ControlPlane, changes: Changes) -> None:
    """Add /admin to the app of build_rest, which turns errors into answers."""
    add_incident(app, gate, ring)
    add_precision(app, gate, control)
    add_admission(app, gate, control)
    add_events(app, gate, changes.events)
