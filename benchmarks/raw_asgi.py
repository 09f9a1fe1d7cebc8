"""What the front is measured against: a bare ASGI app on the same uvicorn. `python -m benchmarks.raw_asgi MODEL.onnx`.

It does the same decode, run and encode, one run a request, without validation, metrics, admission, batching or errors.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvicorn
import uvloop

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEAD_LENGTH = b"inference-header-content-length"


def open_session(path: str, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session as the server opens it: so many threads that don't spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class RawApp:
    """The ASGI callable: one FP32 input, one output, binary or JSON as the request was."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.taken = session.get_inputs()[0].name
        self.given = session.get_outputs()[0].name

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        head_length = 0
        for name, value in scope["headers"]:
            if name == HEAD_LENGTH:
                head_length = int(value)
        message = await receive()
        body = message["body"]
        if message["more_body"]:
            parts = [body]
            while message["more_body"]:
                message = await receive()
                parts.append(message["body"])
            body = b"".join(parts)
        headers, answer = self.binary(body, head_length) if head_length else self.json(body)
        headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def binary(self, body: bytes, head_length: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Decode, run and encode by the binary extension."""
        tensor = orjson.loads(body[:head_length])["inputs"][0]
        y = self.run(np.frombuffer(body, np.float32, offset=head_length).reshape(tensor["shape"]))
        output = {"name": self.given, "datatype": "FP32", "shape": y.shape, "parameters": {"binary_data_size": y.nbytes}}
        head = orjson.dumps({"model_name": "identity", "model_version": "1", "outputs": [output]})
        headers = [(b"content-type", b"application/octet-stream"), (HEAD_LENGTH, str(len(head)).encode())]
        return headers, head + y.tobytes()

    def json(self, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Decode, run and encode as JSON."""
        tensor = orjson.loads(body)["inputs"][0]
        y = self.run(np.array(tensor["data"], np.float32).reshape(tensor["shape"]))
        output = {"name": self.given, "datatype": "FP32", "shape": y.shape, "data": y.ravel()}
        answer = orjson.dumps({"model_name": "identity", "model_version": "1", "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
        return [(b"content-type", b"application/json")], answer

    def run(self, x: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One run for one request."""
        y: np.ndarray[Any, np.dtype[np.float32]] = self.session.run([self.given], {self.taken: x})[0]
        return y


async def serve(path: str) -> None:
    """Serve on any free port until SIGTERM; the ready line says which."""
    config = uvicorn.Config(
        RawApp(open_session(path)),
        port=0,
        loop="uvloop",
        http="httptools",
        interface="asgi3",
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        port = server.servers[0].sockets[0].getsockname()[1]
        print(json.dumps({"event": "ready", "http": f"127.0.0.1:{port}"}), flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
