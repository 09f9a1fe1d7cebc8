"""Fire many requests at once and show how the server batched them."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import numpy as np
import tritonclient.http as client
from numpy.typing import NDArray
from rich.console import Console

from examples.console import say
from examples.metrics import Batches, read_batches
from examples.models import digits
from examples.photos import as_input, photos
from examples.questions import Asker, WrongAnswerError, as_inputs

DIGITS = 200
PHOTOS = 48
TOLERANCE = 1e-4
"""Largest difference between an answer that came out of a batch and the same asked alone."""

TIMEOUT = 60.0
INFINITY = float("inf")


def burst(console: Console, http: str, metrics: str) -> None:
    """200 digits at once, then 48 photos at once, each on its own connection, each with its own data."""
    images = digits.data().test_images
    _fire(console, http, metrics, "digits", [images[i : i + 1] for i in range(DIGITS)])
    shown = [as_input(photo) for photo in photos()]
    _fire(console, http, metrics, "mobilenet_v2", [shown[i % len(shown)] for i in range(PHOTOS)])


def _fire(console: Console, http: str, metrics: str, model: str, rows: list[NDArray[np.float32]]) -> None:
    """All `rows` as requests of their own at once; each answer must equal that to the same row asked alone."""
    distinct = {row.tobytes(): row for row in rows}
    with client.InferenceServerClient(http) as triton:
        alone = {key: Asker(triton).ask(model, {"image": row}, "logits") for key, row in distinct.items()}
    before = read_batches(metrics).get(model, Batches())
    started = time.monotonic()
    answers = _volley(http, model, rows)
    seconds = time.monotonic() - started
    batches = _settled(metrics, model, before, len(rows))
    worst = max(float(np.abs(answer - alone[row.tobytes()]).max()) for row, answer in zip(rows, answers, strict=True))
    say(console, f"{len(rows)} requests to {model} at once: {seconds:.2f} s, {batches.runs} batches: {_histogram(batches)}")
    say(console, f"  closed because: {_reasons(batches)}; answers differ from those asked alone by at most {worst:.1g}")
    if not worst <= TOLERANCE:
        raise WrongAnswerError(f"{model}: an answer of the burst differs by {worst:.3g} from the same row asked alone")


def _volley(http: str, model: str, rows: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
    """One connection and one request a row: all are sent before the first answer is read. The client makes and reads the bodies, but
    the sockets are ours, since its own sends are too far apart to ever wait for each other."""
    host, _, port = http.rpartition(":")
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection((host, int(port)), TIMEOUT)) for _ in rows]
        requests = [_request(http, model, row) for row in rows]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request)
        return [_answer(connection, model) for connection in connections]


def _request(http: str, model: str, row: NDArray[np.float32]) -> bytes:
    body, head = client.InferenceServerClient.generate_request_body(as_inputs({"image": row}))
    lengths = f"Inference-Header-Content-Length: {head}\r\nContent-Length: {len(body)}\r\n"
    return f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {http}\r\n{lengths}\r\n".encode() + bytes(body)


def _answer(connection: socket.socket, model: str) -> NDArray[Any]:
    with HTTPResponse(connection) as response:
        response.begin()
        body = response.read()
    if response.status != 200:
        raise WrongAnswerError(f"{model}: status {response.status} to a request of the burst: {body[:200].decode(errors='replace')}")
    head = response.getheader("Inference-Header-Content-Length")
    result = client.InferenceServerClient.parse_response_body(body, header_length=int(head) if head else None)
    logits: NDArray[Any] = result.as_numpy("logits")
    return logits


def _settled(metrics: str, model: str, before: Batches, rows: int) -> Batches:
    """The batches of the burst, once the metrics have counted all its rows: they are summed a moment after the answers leave."""
    deadline = time.monotonic() + 5
    while True:
        batches = read_batches(metrics).get(model, Batches()).since(before)
        if batches.rows >= rows or time.monotonic() > deadline:
            return batches
        time.sleep(0.05)


def _histogram(batches: Batches) -> str:
    """As in "3 of 1 row, 12 of 9-16 rows": the buckets that aren't empty."""
    parts, below = [], 0.0
    for bound, count in sorted(batches.sizes.items()):
        if count:
            rows = f"over {below:g}" if bound == INFINITY else f"{bound:g}" if bound == below + 1 else f"{below + 1:g}-{bound:g}"
            parts.append(f"{count} of {rows} {'row' if bound == 1 else 'rows'}")
        below = bound
    return ", ".join(parts) or "none counted"


def _reasons(batches: Batches) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(batches.reasons.items()) if count) or "nothing counted"
