"""A load over one gRPC connection, in a process of its own: `python -m benchmarks.grpc_client ADDRESS FILE IN_FLIGHT SECONDS`.

FILE holds one ModelInferRequest. Every answer must be the bytes of the first. Prints the figures as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import grpc
import uvloop

METHOD = "/inference.GRPCInferenceService/ModelInfer"
WARMUP = 0.5


async def load(address: str, request: bytes, in_flight: int, seconds: float) -> dict[str, float]:
    """Each of `in_flight` workers asks as soon as it was answered. Raises where a call fails or an answer differs."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(METHOD)
        expected = await call(request)
        begin = monotonic() + WARMUP
        end = begin + seconds
        latencies: list[float] = []

        async def worker() -> None:
            while (sent := monotonic()) < end:
                if await call(request) != expected:
                    raise ValueError("an answer differs from the first")
                if sent >= begin:
                    latencies.append(monotonic() - sent)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        took = monotonic() - begin
    count = len(latencies)
    counts = {"ok": count, "refused": 0, "within": count, "unsent": 0, "seconds": took, "rate": count / took}
    return {**counts, **_quantiles(sorted(latencies)), "client_cpu_s": process_time()}


def _quantiles(latencies: list[float]) -> dict[str, float]:
    at = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
    found = {name: latencies[int(share * (len(latencies) - 1))] * 1e3 for name, share in at.items()}
    return {**found, "max_ms": latencies[-1] * 1e3}


if __name__ == "__main__":
    figures = uvloop.run(load(sys.argv[1], Path(sys.argv[2]).read_bytes(), int(sys.argv[3]), float(sys.argv[4])))
    print(json.dumps(figures))
