"""What the gRPC edge is measured against: an empty grpc.aio servicer. `python -m benchmarks.grpc_empty ANSWER_BYTES`.

It takes each request as bytes and gives so many bytes back, on uvloop; nothing is decoded, batched, run or counted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import grpc
import uvloop


async def serve(size: int) -> None:
    """Serve on any free port until SIGTERM; the ready line says which."""
    answer = bytes(size)

    async def infer(request: bytes, context: Any) -> bytes:
        return answer

    handlers: dict[str, Any] = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server = grpc.aio.server(handlers=(grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"event": "ready", "grpc": f"127.0.0.1:{port}"}), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
