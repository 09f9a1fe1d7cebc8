"""Images of 600 KB as FP32: in the body against a raw ASGI app, in shared memory against the same, as JSON against parsing alone."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks import wire
from benchmarks.harness import (
    BenchError,
    Load,
    Measured,
    Report,
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
from benchmarks.models import FEATURES, IMAGE

REPEATS = 4
FAST = Load(connections=4, seconds=1.5, warmup=0.3)
ALONE = Load(connections=1, seconds=2.0, warmup=0.3)
SMALL = Load(connections=4, seconds=3.0, warmup=0.5, rate=500.0)
"""The bystander's requests beside JSON images: 500 a second."""
SHADES = (0.5, 1.0, 2.0, 4.0)
"""Each image has one value, whose mean is exact in any order of summation."""
REGION = "bench"


def images() -> list[NDArray[np.float32]]:
    """Images of one shade each."""
    return [np.full((1, *IMAGE), shade, np.float32) for shade in SHADES]


def in_the_body(report: Report, ours: str, raw: str) -> None:
    """The rate of both servers, binary, as a target; and that of shared memory, as another."""
    shots = {name: _binary_shots(name, address) for name, address in (("tidegate", ours), ("raw ASGI", raw))}
    addresses = {"tidegate": ours, "raw ASGI": raw, "shared memory": ours}
    with region() as name:
        refused = register(ours, name)
        if not refused:
            shots["shared memory"] = _shared_shots(ours)
        measures = {title: (lambda title=title: run_load(shots[title], addresses[title], FAST)) for title in shots}
        found = interleave(measures, REPEATS)
    report.details["images"] = as_details(found)
    rates = {title: [measured.rate for measured in several] for title, several in found.items()}
    for title, must in (("tidegate", 0.8), ("shared memory", 1.5)):
        where = "in shared memory" if title == "shared memory" else "in the body"
        if title in rates:
            note = f"{spread(rates[title])} requests/s against {spread(rates['raw ASGI'])}"
            value = ratio(rates[title], rates["raw ASGI"])
        else:
            note, value = f"not served: {refused}", 0.0
        report.targets.append(Target(f"600 KB FP32 {where} / raw ASGI in the body", value, must, note=note))


def as_json(report: Report, ours: str) -> None:
    """The time of a JSON image against orjson and numpy alone, and a bystander's p99 beside such requests: two targets."""
    image = (np.random.default_rng(1).integers(1000, 10000, (1, *IMAGE)) / 10000).astype(np.float32)
    request = wire.json_request(ours, "image", {"X": image})
    (answer,) = wire.ask_one_by_one(ours, [request])
    mean = float(answer.array("Y")[0, 0])
    if abs(mean - image.mean()) > 1e-4:
        raise BenchError(f"image answered {mean}, expected {image.mean()}")
    shots = write_shots("image-json", exact_shots([request], [answer]))
    body = request.partition(b"\r\n\r\n")[2]
    found = interleave({"tidegate": lambda: run_load(shots, ours, ALONE).p50_ms, "parsing": lambda: parsing(body, image)}, REPEATS)
    report.details["JSON images, ms"] = found
    note = f"{spread(found['tidegate'])} ms against {spread(found['parsing'])}"
    value = ratio(found["tidegate"], found["parsing"])
    report.targets.append(Target("JSON of 150k floats / orjson and numpy alone", value, 1.5, at_most=True, note=note))
    _bystander(report, ours, shots)


def parsing(body: bytes, image: NDArray[np.float32]) -> float:
    """Median ms of orjson.loads and the conversion to an array, in this process."""
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        tensor = orjson.loads(body)["inputs"][0]
        array = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        times.append((time.perf_counter() - begun) * 1e3)
    if not np.array_equal(array, image):
        raise BenchError("the parsed image isn't the one that was written")
    return statistics.median(times)


def _bystander(report: Report, ours: str, large: Path) -> None:
    rows = [np.full((1, FEATURES), number, np.float32) for number in range(16)]
    requests = [wire.binary_request(ours, "identity", {"X": row}) for row in rows]
    small = write_shots("image-bystander", exact_shots(requests, wire.ask_one_by_one(ours, requests)))

    def beside() -> Measured:
        with background_load(large, ours, Load(connections=1, seconds=SMALL.warmup + SMALL.seconds + 0.3, warmup=0)) as running:
            measured = run_load(small, ours, SMALL)
            running.result()
        return measured

    found = interleave({"alone": lambda: run_load(small, ours, SMALL), "beside": beside}, 3)
    report.details["beside JSON images"] = as_details(found)
    p99 = {name: [measured.p99_ms for measured in several] for name, several in found.items()}
    note = f"p99 {spread(p99['beside'])} ms against {spread(p99['alone'])}"
    report.targets.append(
        Target("small requests' p99 beside JSON of 150k floats", ratio(p99["beside"], p99["alone"]), 2.0, at_most=True, note=note)
    )


def _binary_shots(name: str, address: str) -> Path:
    """Requests with the values in the body, each checked once against its shade."""
    requests = [wire.binary_request(address, "image", {"X": image}) for image in images()]
    return _checked(f"image-{name}".replace(" ", "-"), address, requests)


def _checked(name: str, address: str, requests: list[bytes]) -> Path:
    answers = wire.ask_one_by_one(address, requests)
    means = [float(answer.array("Y")[0, 0]) for answer in answers]
    if means != list(SHADES):
        raise BenchError(f"{name}: image answered {means}, expected {SHADES}")
    return write_shots(name, exact_shots(requests, answers))


@contextmanager
def region() -> Iterator[str]:
    """The images one after the other in shared memory, as a client writes them; its name."""
    name = f"tidegate-bench-{os.getpid()}"
    path = Path("/dev/shm") / name
    try:
        path.write_bytes(b"".join(image.tobytes() for image in images()))
        yield name
    finally:
        path.unlink(missing_ok=True)


def register(address: str, name: str) -> str:
    """Tell a server of the region. What it said where it refused, else ""."""
    connection = http.client.HTTPConnection(*wire.split_address(address), timeout=10)
    size = len(SHADES) * images()[0].nbytes
    body = json.dumps({"key": f"/{name}", "offset": 0, "byte_size": size})
    connection.request("POST", f"/v2/systemsharedmemory/region/{REGION}/register", body)
    answer = connection.getresponse()
    said = answer.read().decode(errors="replace")
    connection.close()
    return "" if answer.status == 200 else f"{answer.status} {said[:80]}"


def _shared_shots(address: str) -> Path:
    size = images()[0].nbytes
    requests = []
    for number in range(len(SHADES)):
        where = {"shared_memory_region": REGION, "shared_memory_byte_size": size, "shared_memory_offset": number * size}
        tensor = {"name": "X", "shape": [1, *IMAGE], "datatype": "FP32", "parameters": where}
        head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        requests.append(wire.post(address, "image", f"Inference-Header-Content-Length: {len(head)}\r\n", head))
    return _checked("image-shared", address, requests)
