"""Unary gRPC: identity over one connection against an empty servicer of the same bytes, and small HTTP requests beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2

from benchmarks import wire
from benchmarks.harness import (
    BUILD,
    BenchError,
    Load,
    Measured,
    Report,
    Target,
    as_details,
    exact_shots,
    interleave,
    python_server,
    ratio,
    run_load,
    spread,
    write_shots,
)
from benchmarks.models import FEATURES
from examples.serving import ServerProcess

REPEATS = 5
SECONDS = 2.5
IN_FLIGHT = 32
BESIDE = Load(connections=4, seconds=4.0, warmup=0.5, rate=500.0)
"""The HTTP requests beside the gRPC ones: 500 a second."""


@dataclass(frozen=True, slots=True)
class Unary:
    """One measurement, and the CPU that the server took for a request, in µs."""

    figures: Measured
    server_cpu_us: float


def compare_unary(report: Report, ours: ServerProcess) -> None:
    """The rate of both, as a target; their CPU a request, as a note."""
    request = request_file()
    with empty_servicer(answer_bytes(ours.ready["grpc"], request)) as empty:
        servers = {"tidegate": ours, "empty": empty}
        found = interleave({name: _measure(server, request) for name, server in servers.items()}, REPEATS)
    figures = {name: [unary.figures for unary in several] for name, several in found.items()}
    cpu = {name: [unary.server_cpu_us for unary in several] for name, several in found.items()}
    report.details["grpc unary"] = {**as_details(figures), "server_cpu_us": cpu}
    rates = {name: [measured.rate for measured in several] for name, several in figures.items()}
    note = (
        f"{spread(rates['tidegate'])} requests/s against {spread(rates['empty'])}; "
        f"server CPU {spread(cpu['tidegate'])} µs a request against {spread(cpu['empty'])}"
    )
    report.targets.append(
        Target("gRPC unary, 1 connection, 32 in flight / empty servicer", ratio(rates["tidegate"], rates["empty"]), 0.8, note=note)
    )


def beside_http(report: Report, ours: ServerProcess) -> str:
    """The p99 of 500 HTTP requests a second, alone and beside gRPC's 32 in flight, in words: a figure without a bound."""
    rows = [np.full((1, FEATURES), number, np.float32) for number in range(16)]
    requests = [wire.binary_request(ours.ready["http"], "identity", {"X": row}) for row in rows]
    shots = write_shots("grpc-beside-http", exact_shots(requests, wire.ask_one_by_one(ours.ready["http"], requests)))
    request = request_file()

    def beside() -> Measured:
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(_load, ours.ready["grpc"], request, BESIDE.warmup + BESIDE.seconds)
            measured = run_load(shots, ours.ready["http"], BESIDE)
            calling.result()
        return measured

    found = interleave({"alone": lambda: run_load(shots, ours.ready["http"], BESIDE), "beside gRPC": beside}, 2)
    report.details["http beside grpc"] = as_details(found)
    p99 = {name: [measured.p99_ms for measured in several] for name, several in found.items()}
    return f"HTTP's p99 beside gRPC: {spread(p99['beside gRPC'])} ms, against {spread(p99['alone'])} alone"


def request_file() -> Path:
    """A ModelInferRequest for identity, as protobuf writes it."""
    message = service_pb2.ModelInferRequest(model_name="identity", raw_input_contents=[np.arange(FEATURES, dtype=np.float32).tobytes()])
    message.inputs.add(name="X", datatype="FP32", shape=[1, FEATURES])
    path = BUILD / "grpc-identity.request"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(message.SerializeToString())
    return path


def answer_bytes(address: str, request: Path) -> int:
    """How long our answer is, once it was found right. Raises BenchError for a wrong one."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer: bytes = call(request.read_bytes(), timeout=10)
    values = np.frombuffer(service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0], np.float32)
    if not np.array_equal(values, np.arange(FEATURES)):
        raise BenchError(f"identity answered {values} over gRPC")
    return len(answer)


@contextmanager
def empty_servicer(size: int) -> Iterator[ServerProcess]:
    """The server that ours is measured against."""
    with python_server("benchmarks.grpc_empty", str(size), log="grpc-empty") as server:
        yield server


def _measure(server: ServerProcess, request: Path) -> Callable[[], Unary]:
    def measure() -> Unary:
        process = psutil.Process(server.pid)
        before = _cpu(process)
        figures = _load(server.ready["grpc"], request, SECONDS)
        requests = figures.rate * (SECONDS + 0.5)  # those of the warm-up are in the server's CPU too
        return Unary(figures, (_cpu(process) - before) / requests * 1e6)

    return measure


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _load(address: str, request: Path, seconds: float) -> Measured:
    command = [sys.executable, "-m", "benchmarks.grpc_client", address, str(request), str(IN_FLIGHT), str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if result.returncode:
        raise BenchError(f"the gRPC client failed: {result.stderr.strip()[-500:]}")
    figures: dict[str, Any] = json.loads(result.stdout)
    return Measured(**figures)
