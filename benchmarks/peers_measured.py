"""What is measured of a server: answers checked, then closed loops of 1, 8 and 32 connections, then an open loop below its capacity."""

from __future__ import annotations

import http.client
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BenchError, Load, Measured, Shot, run_load, write_shots
from benchmarks.peers_run import Ours, Running, serving
from benchmarks.raw_asgi import open_session
from benchmarks.wire import split_address
from loadtests.peers.adapters import Peer
from loadtests.peers.bodies import FORMATS, output
from loadtests.peers.workloads import Arrays, Setting, Workload

CONNECTIONS = (1, 8, 32)
SHARES = (0.6, 0.85)  # of its own capacity, open loop
OPEN_CONNECTIONS = 256
CHECKED = 12
WARMUP = 0.5
OURS = Ours()


@dataclass(slots=True)
class Cell:
    """All measurements of one server with one workload, body and setting; `why` it couldn't be measured, if so."""

    closed: dict[int, list[Measured]] = field(default_factory=lambda: {count: [] for count in CONNECTIONS})
    opened: dict[float, list[Measured]] = field(default_factory=lambda: {share: [] for share in SHARES})
    cpu_ms: list[float] = field(default_factory=list)
    memory: int = 0
    why: str = ""

    def rate(self, connections: int = CONNECTIONS[-1]) -> float:
        """Answers a second, NaN where there's none."""
        return statistics.median([each.rate for each in self.closed[connections]] or [float("nan")])

    def p50(self, connections: int = 1) -> float:
        return statistics.median([each.p50_ms for each in self.closed[connections]] or [float("nan")])

    @property
    def best(self) -> float:
        """Its highest rate, at whatever number of connections."""
        return max((self.rate(count) for count in CONNECTIONS if self.closed[count]), default=0.0)


Key = tuple[str, str, str, str]
"""Peer, workload, body, setting."""


class Cells:
    """The cells by key."""

    def __init__(self) -> None:
        self.all: dict[Key, Cell] = {}

    def cell(self, peer: Peer, workload: Workload, form: str, setting: Setting) -> Cell:
        return self.all.setdefault((peer.name, workload.name, form, str(setting)), Cell())

    def of(self, workload: str) -> Iterator[tuple[Key, Cell]]:
        """The cells that were measured of a workload."""
        return ((key, cell) for key, cell in self.all.items() if key[1] == workload and cell.best)

    def best(self, workload: str, peer: str, form: str = "") -> Cell | None:
        """A peer's best cell, of one body where it's named."""
        found = [cell for key, cell in self.of(workload) if key[0] == peer and form in ("", key[2])]
        return max(found, key=lambda cell: cell.best, default=None)

    def as_details(self) -> dict[str, Any]:
        """The form that a report keeps."""
        return {"|".join(key): asdict(cell) for key, cell in self.all.items()}


def measure_round(cells: Cells, workload: Workload, peers: Sequence[tuple[Peer, Path]], model: Path, *, reverse: bool) -> None:
    """Every server once, one after another."""
    requests = workload.requests()
    expected = _expected(model, requests)
    for peer, venv in [*peers, (OURS, Path())][:: -1 if reverse else 1]:
        for setting in peer.settings(workload) if peer.formats(workload) else ():
            forms = {form: cells.cell(peer, workload, form, setting) for form in peer.formats(workload)}
            try:
                with serving(peer, venv, workload, setting, model) as running:
                    for form, cell in forms.items():
                        _measure(cell, peer, running, workload, form, requests, expected)
            except (BenchError, OSError) as error:
                for cell in forms.values():
                    cell.why = str(error)[:300]


def _measure(
    cell: Cell, peer: Peer, running: Running, workload: Workload, form: str, requests: Sequence[Arrays], expected: Sequence[NDArray[Any]]
) -> None:
    path = peer.path(workload, form)
    try:
        _check(running.address, path, form, requests, expected, workload.tolerance)
        whole = [Shot(_whole(running.address, path, form, each)) for each in requests]
        shots = write_shots(f"peers-{peer.name}-{workload.name}-{form}", whole)
        for count in CONNECTIONS:
            before = running.cpu()
            measured = run_load(shots, running.address, Load(count, workload.seconds, WARMUP))
            cell.closed[count].append(measured)
        cell.cpu_ms.append(1e3 * (running.cpu() - before) / max(1.0, measured.rate * (workload.seconds + WARMUP)))
        for share in SHARES:
            rate = share * max(cell.closed[count][-1].rate for count in CONNECTIONS)
            load = Load(OPEN_CONNECTIONS, workload.seconds * 1.5, WARMUP, rate, 7, workload.objective / 1e3)
            cell.opened[share].append(run_load(shots, running.address, load))
        cell.memory = max(cell.memory, running.memory())
    except (BenchError, ValueError, OSError, http.client.HTTPException) as error:
        cell.why = f"{type(error).__name__}: {error}"[:300]


def _expected(model: Path, requests: Sequence[Arrays]) -> list[NDArray[Any]]:
    session = open_session(str(model))
    return [session.run(None, dict(each))[0].ravel() for each in requests[:CHECKED]]


def _check(address: str, path: str, form: str, requests: Sequence[Arrays], expected: Sequence[NDArray[Any]], tolerance: float) -> None:
    """Ask one by one and all at once. Raises BenchError for an answer that is wrong."""
    alone = [_ask(address, path, form, each) for each in requests[:3]]
    with ThreadPoolExecutor(CHECKED) as pool:
        together = list(pool.map(lambda each: _ask(address, path, form, each), requests[:CHECKED]))
    scale = max(1.0, *(float(np.abs(each).max()) for each in expected))
    for found, right in zip([*alone, *together], [*expected[:3], *expected], strict=True):
        if found.shape != right.shape or float(np.abs(found - right).max()) > tolerance * scale:
            raise BenchError(f"a wrong answer to {form}: {found[:4]} where {right[:4]} is right")


def _ask(address: str, path: str, form: str, arrays: Arrays) -> NDArray[np.float32]:
    body, headers = FORMATS[form](arrays)
    connection = http.client.HTTPConnection(*split_address(address), timeout=30)
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise BenchError(f"status {response.status}: {content[:200]!r}")
        return output(form, {name.lower(): value for name, value in response.getheaders()}, content)
    finally:
        connection.close()


def _whole(address: str, path: str, form: str, arrays: Arrays) -> bytes:
    """A request's bytes."""
    body, headers = FORMATS[form](arrays)
    lines: Mapping[str, str] = {"Host": address, "Accept": "*/*", **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
