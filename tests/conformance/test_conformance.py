"""One suite over every transport, through stock clients in processes of their own; and it exercises every method of both edges."""

from __future__ import annotations

import re
from collections.abc import Iterable

import httpx
import pytest

from server.app import App
from server.edges.grpc.servicer import INFERENCES, METHODS
from tests.conformance.cases import CASES, HTTP_CASES
from tests.conformance.conftest import Clients
from tests.conformance.regions import TRANSPORTS
from tests.conformance.transports import Call

REFUSING = {("POST", "/v2/cudasharedmemory/region/{region}/register"), ("", "CudaSharedMemoryRegister")}
"""What only says that it's unsupported."""

RUNS = [*((transport, case) for transport in TRANSPORTS for case in CASES), *(("http binary", case) for case in HTTP_CASES)]


@pytest.mark.parametrize(("transport", "case"), RUNS)
def test_case(served: App, clients: Clients, transport: str, case: str) -> None:
    clients.run(transport, case)
    assert served.edge.inflight.used == 0


def test_every_route_is_exercised(served: App, clients: Clients) -> None:
    called = exercised(clients, "http binary", [*CASES, *HTTP_CASES])
    paths = httpx.get(f"http://{served.addresses.http}/openapi.json").json()["paths"]
    routes = {(verb.upper(), path) for path, verbs in paths.items() if path.startswith("/v2") for verb in verbs}
    met = {(verb, template_of(path, paths)) for verb, path in called}
    assert met <= routes
    assert sorted(routes - met - REFUSING) == [], "add a case to tests/conformance/cases.py for each of these"


def test_every_method_is_exercised(clients: Clients) -> None:
    called = {method for transport in ("grpc raw", "grpc stream") for _, method in exercised(clients, transport, CASES)}
    there = set(METHODS) | INFERENCES
    assert called <= there
    assert sorted(there - called - {method for _, method in REFUSING}) == [], "add a case to tests/conformance/cases.py for each of these"


def exercised(clients: Clients, transport: str, cases: Iterable[str]) -> set[Call]:
    """What a transport called successfully, after all cases: by itself, so that it doesn't matter which ran before in this process."""
    called: set[Call] = set()
    for case in cases:
        called = clients.run(transport, case)
    return called


def template_of(path: str, templates: Iterable[str]) -> str:
    """The route of the document that a path is one of: the one with the fewest parts that vary."""
    fitting = [one for one in templates if re.fullmatch(re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(one)), path)]
    assert fitting, path
    return min(fitting, key=lambda one: one.count("{"))
