"""Precision switched under load, on a real server: MiniLM between FP32 and INT8 in a process lane, asked by one Poisson process.

Each answer says which precision it comes from (explain), and is held to that one's own answer to the same request, asked alone. The tail is
that of requests from their due time on, against the same load without a switch on the same server.
"""

from __future__ import annotations

import http.client
import queue
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import wire
from benchmarks.export_models import WORK, example, export, minilm_flags, weights
from benchmarks.harness import BUILD, BenchError, Report, Target, tidegate

PRECISIONS = ("fp32", "int8")
SWITCHES, STEADY, GAP, SHARE = 20, 12.0, 0.7, 0.5  # seconds of the steady state, and between a switch and the next; of the capacity
CLIENTS = 32
LENGTHS = range(16, 40)
NEAR = {"fp32": 1e-3, "int8": 0.15}  # relative distance: INT8 scales its activations by what shares the run
YAML = """lanes: {{kind: process, count: 1, threads: 1}}
precision: {{keep: {keep}}}
batching: {{pad_axes: {{input_ids: [1], attention_mask: [1]}}}}
"""


@dataclass(slots=True)
class Seen:
    """What came of a load. Latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    by: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def p99(self) -> float:
        return float(np.quantile(self.latencies, 0.99))


class Asked:
    """The requests, and each precision's own answers to them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests = [_request(address, length) for length in LENGTHS]
        self.own: dict[str, list[NDArray[Any]]] = {}

    def learn(self, precision: str) -> None:
        """Ask each alone, of the precision that serves now."""
        answers = [_parsed(answer) for answer in wire.ask_one_by_one(self.address, self.requests)]
        if {said for said, _ in answers} != {precision}:
            raise BenchError(f"expected answers in {precision}, got {answers[0][0]}")
        self.own[precision] = [array for _, array in answers]

    def judge(self, index: int, answer: wire.Answer, seen: Seen) -> None:
        """Count an answer."""
        if answer.status != 200:
            seen.failed.append(answer.body[:200].decode(errors="replace"))
            return
        precision, array = _parsed(answer)
        seen.by[precision] = seen.by.get(precision, 0) + 1
        own = self.own[precision][index]
        apart = float(np.abs(array - own).max() / np.abs(own).max())
        if not apart <= NEAR[precision]:
            seen.wrong.append(f"{precision}: {apart:.3g} from its own")


def switched(report: Report) -> None:
    """The target: twenty switches, each of which loads the other precision beside, and the same with both kept loaded."""
    for keep, name in ((0, "loaded beside"), (1, "kept loaded")):
        with tidegate(_repository(keep), f"precision-switch-{keep}.log") as running:
            found = _measured(running.ready["http"])
        report.details[f"switch, {name}"] = found
        note = f"{found['requests']} requests at {found['rate']:.0f}/s, {SWITCHES} switches, {name}"
        for what, must in (("failed", 0.0), ("wrong", 0.0)):
            report.targets.append(Target(f"hot switch under load, {name}: {what}", found[what], must, at_most=True, note=note))
        note = f"{found['p99_ms']:.0f} ms against {found['steady_p99_ms']:.0f} ms; a switch took {found['switch_s']:.2f} s in the median"
        report.targets.append(Target(f"hot switch under load, {name}: p99 over steady state", found["ratio"], 1.5, at_most=True, note=note))


def _measured(address: str) -> dict[str, Any]:
    asked, capacity = Asked(address), {}
    for precision in (*reversed(PRECISIONS), PRECISIONS[0]):
        _switch(address, precision)
        asked.learn(precision)
        capacity[precision] = _get(address, "/v2/models/minilm/batcher")["capacity"]["rows_per_s"]
    rate = SHARE * min(capacity.values())
    steady = {}
    for precision in PRECISIONS:
        _switch(address, precision)
        with Arrivals(asked, rate) as seen:
            time.sleep(STEADY / len(PRECISIONS))
        steady[precision] = seen
    took: list[float] = []
    with Arrivals(asked, rate) as seen:
        for number in range(SWITCHES):
            begun = time.monotonic()
            _switch(address, PRECISIONS[number % 2])
            took.append(time.monotonic() - begun)
            time.sleep(GAP)
    calm = max(each.p99() for each in steady.values())
    return {
        "rate": rate,
        "capacity rows/s": capacity,
        "requests": len(seen.latencies),
        "by": seen.by,
        "failed": len(seen.failed),
        "wrong": len(seen.wrong),
        "faults": [*seen.failed[:3], *seen.wrong[:3]],
        "steady_p99_ms": calm * 1e3,
        "p50_ms": float(np.quantile(seen.latencies, 0.5)) * 1e3,
        "p99_ms": seen.p99() * 1e3,
        "ratio": seen.p99() / calm,
        "switch_s": float(np.median(took)),
        "switches_s": took,
    }


class Arrivals:
    """Requests by one Poisson process while the block runs, each over a connection that is idle."""

    def __init__(self, asked: Asked, rate: float) -> None:
        self._asked, self._rate, self._seen = asked, rate, Seen()
        self._due: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)] + [threading.Thread(target=self._arrivals)]

    def __enter__(self) -> Seen:
        for thread in self._threads:
            thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _arrivals(self) -> None:
        draw, due = random.Random(11), time.monotonic()
        while not self._ended.is_set():
            due += draw.expovariate(self._rate)
            time.sleep(max(0.0, due - time.monotonic()))
            self._due.put((due, draw.randrange(len(self._asked.requests))))
        for _ in range(CLIENTS):
            self._due.put(None)

    def _client(self) -> None:
        with wire.connected(self._asked.address) as ask:
            while (item := self._due.get()) is not None:
                due, index = item
                answer = ask(self._asked.requests[index])
                took = time.monotonic() - due
                with self._lock:
                    self._seen.latencies.append(took)
                    self._asked.judge(index, answer, self._seen)


def _request(address: str, length: int) -> bytes:
    ids = np.random.default_rng(length).integers(1000, 20000, (1, length))
    tensors = [
        {"name": name, "shape": ids.shape, "datatype": "INT64", "data": array.ravel()}
        for name, array in (("input_ids", ids), ("attention_mask", np.ones_like(ids)))
    ]
    body = orjson.dumps({"inputs": tensors, "parameters": {"explain": True}}, option=orjson.OPT_SERIALIZE_NUMPY)
    return wire.post(address, "minilm", "Content-Type: application/json\r\n", body)


def _parsed(answer: wire.Answer) -> tuple[str, NDArray[Any]]:
    """The precision that answered, and the first output."""
    if answer.status != 200:
        raise BenchError(f"status {answer.status}: {answer.body[:200].decode(errors='replace')}")
    said = orjson.loads(answer.body)
    return said["parameters"]["precision"], np.array(said["outputs"][0]["data"], np.float32)


def _repository(keep: int) -> Path:
    """MiniLM in both precisions, exported once."""
    made = WORK / "models" / "minilm"
    if not all((made / "1" / f"model.{precision}.onnx").exists() for precision in PRECISIONS):
        folder = weights(Console())
        export("minilm", example("minilm"), "--precisions", ",".join(PRECISIONS), *minilm_flags(folder))
    entry = BUILD / f"precision-switch-{keep}" / "minilm"
    if not entry.exists():
        (entry / "1").mkdir(parents=True)
        for file in (made / "1").iterdir():
            (entry / "1" / file.name).hardlink_to(file.resolve())
    (entry / "model.yaml").write_text(YAML.format(keep=keep))
    return entry.parent


def _switch(address: str, precision: str) -> None:
    _admin(address, "PUT", "/admin/models/minilm/precision", orjson.dumps({"active": precision}))


def _get(address: str, path: str) -> Any:
    return _admin(address, "GET", path)


def _admin(address: str, method: str, path: str, body: bytes | None = None) -> Any:
    connection = http.client.HTTPConnection(*wire.split_address(address), timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        said = orjson.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchError(f"{method} {path}: status {answer.status}: {said}")
    return said
