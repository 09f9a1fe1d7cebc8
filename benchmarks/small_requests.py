"""Small requests to the front: against a raw ASGI app on the same uvicorn, and beside a client that posts large JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import wire
from benchmarks.harness import (
    BenchError,
    Load,
    Measured,
    Report,
    Shot,
    Target,
    as_details,
    background_load,
    exact_shots,
    interleave,
    ratio,
    run_load,
    spread,
    write_shots,
)
from benchmarks.models import FEATURES, WIDE

REPEATS = 3
SECONDS = 2.5
ALONE_REPEATS, ALONE_SECONDS = 9, 0.8
"""With one connection the time is mostly that of waking up, and jumps with the cores that the kernel picks: many short runs."""
DISTINCT = 64
"""Different requests that are sent in turn."""

JSON_LIMIT = 16 << 20
MODERATE = Load(connections=8, seconds=4.0, warmup=0.5, rate=1000.0)
"""The small requests beside the large ones: 1,000 a second, well under what the front can do on half a core."""

Encode = Callable[[str, str, wire.Arrays], bytes]


def compare_fronts(report: Report, ours: str, raw: str) -> None:
    """Rate and latency of both servers, binary and JSON, as three targets."""
    rows = _rows()
    servers = {"tidegate": ours, "raw ASGI": raw}
    binary = {name: _shots(f"binary {name}", address, rows, wire.binary_request) for name, address in servers.items()}
    text = {name: _shots(f"json {name}", address, rows, wire.json_request) for name, address in servers.items()}
    for title, shots, connections in (
        ("binary, 32 connections", binary, 32),
        ("binary, 1 connection", binary, 1),
        ("JSON, 32 connections", text, 32),
    ):
        found = _measure(servers, shots, connections)
        report.details[title] = as_details(found)
        report.targets.append(_target(title, found, connections))


def beside_large_json(report: Report, ours: str) -> None:
    """The p99 of small requests, without and with another client that posts 16 MiB of JSON again and again."""
    small = _shots("small", ours, _rows(), wire.binary_request)
    large = write_shots("large", [_large_shot(ours)])
    posted: list[Measured] = []

    def alone() -> Measured:
        return run_load(small, ours, MODERATE)

    def beside() -> Measured:
        poster = Load(connections=1, seconds=MODERATE.warmup + MODERATE.seconds + 0.5, warmup=0)
        with background_load(large, ours, poster) as running:
            measured = run_load(small, ours, MODERATE)
            posted.append(running.result())
        return measured

    found = interleave({"alone": alone, "beside large JSON": beside}, REPEATS + 1)
    report.details["small requests beside large JSON"] = {**as_details(found), "posted": as_details({"": posted})[""]}
    p99 = {name: [measured.p99_ms for measured in several] for name, several in found.items()}
    note = (
        f"p99 {spread(p99['beside large JSON'])} ms against {spread(p99['alone'])}; {statistics.median(m.rate for m in posted):.1f} posts/s"
    )
    value = ratio(p99["beside large JSON"], p99["alone"])
    report.targets.append(Target("small requests' p99 beside 16 MiB JSON posts", value, 2.0, at_most=True, note=note))


def _rows() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(42)
    return [rng.standard_normal((1, FEATURES)).astype(np.float32) for _ in range(DISTINCT)]


def _shots(name: str, address: str, rows: Sequence[NDArray[np.float32]], encode: Encode) -> Path:
    """Requests to identity, each checked once here against its own row; the load generator then holds every answer to that one."""
    requests = [encode(address, "identity", {"X": row}) for row in rows]
    answers = wire.ask_one_by_one(address, requests)
    for row, answer in zip(rows, answers, strict=True):
        if not np.allclose(answer.array("Y"), row, rtol=1e-6, atol=0):
            raise BenchError(f"{name}: identity answered {answer.array('Y')} to {row}")
    return write_shots(name.replace(" ", "-"), exact_shots(requests, answers))


def _large_shot(address: str) -> Shot:
    row = (np.random.default_rng(1).integers(1000, 10000, (1, WIDE)) / 10000).astype(np.float32)
    request = wire.json_request(address, "mean", {"X": row})
    if not 0.95 * JSON_LIMIT < len(request) < JSON_LIMIT:
        raise BenchError(f"the large JSON request has {len(request)} bytes, which isn't just under {JSON_LIMIT}")
    (answer,) = wire.ask_one_by_one(address, [request])
    mean = float(answer.array("Y")[0, 0])
    if abs(mean - row.mean()) > 1e-4:
        raise BenchError(f"mean answered {mean}, expected {row.mean()}")
    return Shot(request, len(answer.body), answer.body)


def _measure(servers: dict[str, str], shots: dict[str, Path], connections: int) -> dict[str, list[Measured]]:
    def measure(name: str) -> Callable[[], Measured]:
        return lambda: run_load(shots[name], servers[name], Load(connections, ALONE_SECONDS if connections == 1 else SECONDS))

    return interleave({name: measure(name) for name in servers}, ALONE_REPEATS if connections == 1 else REPEATS)


def _target(title: str, found: dict[str, list[Measured]], connections: int) -> Target:
    if connections == 1:
        p50 = {name: [measured.p50_ms for measured in several] for name, several in found.items()}
        note = f"{spread(p50['tidegate'])} ms against {spread(p50['raw ASGI'])}"
        return Target(f"p50 / raw ASGI's: {title}", ratio(p50["tidegate"], p50["raw ASGI"]), 1.1, at_most=True, note=note)
    rates = {name: [measured.rate for measured in several] for name, several in found.items()}
    note = f"{spread(rates['tidegate'])} requests/s against {spread(rates['raw ASGI'])}"
    must = 1.3 if title.startswith("JSON") else 2.0
    return Target(f"rate / raw ASGI's: {title}", ratio(rates["tidegate"], rates["raw ASGI"]), must, note=note)
