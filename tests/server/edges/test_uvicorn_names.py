"""The hot path builds on uvicorn's internals: each name it uses is asserted, so that a new uvicorn fails here and not in production."""

from __future__ import annotations

import inspect

import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState


def test_the_pinned_minor_version() -> None:
    assert uvicorn.__version__.startswith("0.54.")


def test_protocol() -> None:
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters)[1:] == ["config", "server_state", "app_state", "_loop"]
    for name in (
        *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing", "shutdown"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("_start_asgi_task", "on_response_complete", "send_400_response"),
    ):
        assert inspect.isfunction(getattr(HttpToolsProtocol, name)), name
    source = inspect.getsource(HttpToolsProtocol)
    for attribute in ("self.cycle", "self.flow", "self.parser", "self.url", "self.transport", "self.server_state", "self.loop"):
        assert attribute in source
    assert "existing_cycle is None or existing_cycle.response_complete" in inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]


def test_cycle() -> None:
    source = inspect.getsource(RequestResponseCycle)
    for attribute in ("self.disconnected", "self.message_event", "self.response_complete", "self.on_response()"):
        assert attribute in source


def test_flow_control() -> None:
    flow = inspect.getsource(FlowControl)
    for attribute in ("self._transport", "self.read_paused", "self.write_paused", "def pause_reading", "def resume_reading"):
        assert attribute in flow


def test_server_state_and_config() -> None:
    state = ServerState()
    assert (state.total_requests, state.connections, state.tasks) == (0, set(), set())
    assert {"ssl", "backlog", "loaded"} <= set(inspect.getsource(Config).replace("self.", " ").split())
