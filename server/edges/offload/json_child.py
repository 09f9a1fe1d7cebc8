"""What runs in the helper process for big JSON: one request after the other, JSON to binary or back, until the parent hangs up.

A request is a small message over a Unix socket with the body's memfd beside it, and so is its answer. The child imports the codecs
and nothing else of the server, and gives way to it (nice 10, long turns).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from server.errors import TidegateError
from server.protocol import json_codec
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.client_codec import decode_response, encode_request
from server.protocol.encode import Encoded, Encoder
from server.protocol.head import Head, Layouts, parse_head
from server.protocol.proto_codec import ProtoDecoder
from server.protocol.reply import Reply
from server.timeslice import LONGEST, take_turns

MAX_MESSAGE = 1 << 16
MAX_TEXT = 4096
FREED_LATE = 4 << 20  # bytes of a body: to free what a larger one was parsed to would take a core from those who wait for the answer
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Job(NamedTuple):
    """What to do with the body in the memfd. `kind` is decode (JSON to a binary request), typed (a gRPC message with typed contents to
    one; the answer's text names the model and the version) or encode (a binary answer to JSON).
    `head` is the length of the body's head, None where it's all JSON; `binary` says which outputs of an answer stay binary."""

    number: int
    kind: str
    size: int
    head: int | None
    model: str = ""
    binary: tuple[bool, ...] = ()


class Answer(NamedTuple):
    """How a job ended: the body in the memfd beside it, or the name of the error's class and its text. Job 0 says "ready"."""

    number: int
    size: int = 0
    head: int = 0
    binary: bool = False
    error: str = ""
    text: str = ""


class _Done(NamedTuple):
    """What a job came to, and the answer's text. `parsed` is what a body of moderate size was parsed to, freed after the answer: 0.6 ms
    for 150,000 floats."""

    body: Encoded
    text: str = ""
    parsed: Head | None = None


def main(channel_fd: int) -> None:
    """Serve jobs from the socket `channel_fd` until it's closed at the other end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which drains first and then hangs up
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    take_turns(LONGEST)
    with socket.socket(fileno=channel_fd) as channel:
        send(channel, Answer(0))
        while True:
            message, fds, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
            if not message:
                return
            _serve(channel, Job(*orjson.loads(message)), fds[0])


def _serve(channel: socket.socket, job: Job, fd: int) -> None:
    """What is large is freed before the answer is sent: whoever waits for it needs the core, and freeing takes milliseconds."""
    try:
        done = _do(job, fd)
    except TidegateError as error:
        send(channel, Answer(job.number, error=type(error).__name__, text=str(error)[:MAX_TEXT]))
        return
    result = new_memfd()
    try:
        write_all(result, (done.body.head, *done.body.blobs))
        fcntl.fcntl(result, fcntl.F_ADD_SEALS, SEALS)
        answer, _parsed = Answer(job.number, done.body.size, len(done.body.head), done.body.binary, text=done.text), done.parsed
        del done
        send(channel, answer, result)
    finally:
        os.close(result)


def _do(job: Job, fd: int) -> _Done:
    try:
        body = map_body(fd, job.size, mmap.MAP_POPULATE)
    finally:
        os.close(fd)
    return _KINDS[job.kind](body, job)


def _decode(body: memoryview, job: Job) -> _Done:
    if job.head is None:
        head = parse_head(body)
        request, reply = json_codec.request_of(head, job.model, "", Layouts()), head.reply
        return _Done(encode_request(request, reply), "", head if job.size <= FREED_LATE else None)
    request, reply = BinaryDecoder().decode(body, job.head, job.model, "")
    return _Done(encode_request(request, reply))


def _typed(body: memoryview, job: Job) -> _Done:
    request = ProtoDecoder(job.size).decode(bytes(body))
    return _Done(encode_request(request, Reply(request.id)), orjson.dumps((request.model, request.version)).decode())


def _encode(body: memoryview, job: Job) -> _Done:
    response = decode_response(body, job.head)
    binary = dict(zip(response.outputs, job.binary, strict=True))
    return _Done(Encoder().encode(response, Reply(response.id, False, binary)))


_KINDS: Mapping[str, Callable[[memoryview, Job], _Done]] = {"decode": _decode, "typed": _typed, "encode": _encode}


def send(channel: socket.socket, message: Job | Answer, fd: int | None = None) -> None:
    """Send one message, with a file descriptor beside it."""
    text = orjson.dumps(tuple(message))
    if fd is None:
        channel.send(text)
    else:
        socket.send_fds(channel, [text], [fd])


def new_memfd() -> int:
    """An empty file in memory, without a name anywhere: it's gone with its last descriptor and mapping."""
    return os.memfd_create("tidegate-json", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_all(fd: int, parts: Iterable[Any]) -> None:
    """Write the parts one after the other."""
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def map_body(fd: int, size: int, flags: int = 0) -> memoryview:
    """The first `size` bytes of a memfd, read-only. The memory is given back when the last view of it dies.

    Without MAP_POPULATE in `flags` pages are mapped as they're read: 10 MB at once would keep an event loop for a millisecond.
    """
    if not size:
        return memoryview(b"")
    return memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED | flags, mmap.PROT_READ))
