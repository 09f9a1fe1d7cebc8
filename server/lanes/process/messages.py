"""What a process lane and its child say to each other: small JSON messages over one Unix socket, descriptors beside them. No pickle.

The job goes to the child once, when it starts, and what it opened comes back once: both in a memfd, since labels may be long. Then one
Run and one Done for each batch.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from server import errors
from server.backends.base import VariantSpec
from server.errors import BackendFailure, Overloaded, TidegateError
from server.lanes.process.segments import Part
from server.lanes.sweep import Shape
from server.lanes.warmup import WarmUp
from server.tensors import TensorSpec

LOADING_NICE = 10  # how far a child gives way while it loads
MAX_MESSAGE = 1 << 16
MAX_FDS = 250  # the kernel takes 253
MAX_TEXT = 4096
WINDOW = 4  # answers of a stream that its child may be ahead of whoever takes them
_NOT_WARM, _ONE = WarmUp({}, batched=False), Shape(1, 1)
_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Run(NamedTuple):
    """Run one batch. `opened` are new input segments, whose descriptors come with it; `closed` are gone; `returned` are answer blocks
    that nobody views any more. `stream`: it may have any number of answers."""

    number: int
    rows: int
    parts: Sequence[Part]
    opened: Sequence[tuple[int, int]] = ()
    closed: Sequence[int] = ()
    returned: Sequence[int] = ()
    stream: bool = False


class Steer(NamedTuple):
    """To a run that streams: `more` answers may come, or none (0). `returned` as in Run."""

    number: int
    more: int
    returned: Sequence[int] = ()


class Done(NamedTuple):
    """How run `number` ended: outputs, or the name of the error's class and its text. `opened` and `closed` are answer blocks.
    Not `final`: one of several answers."""

    number: int
    started: float
    finished: float
    parts: Sequence[Part] = ()
    opened: Sequence[tuple[int, int]] = ()
    closed: Sequence[int] = ()
    error: str = ""
    text: str = ""
    final: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """What the child is for. Of `shapes` (count and threads), where there are several, it finds the best; `memory_limit` is bytes, 0 for
    none; `urgent`: requests wait for it, so it doesn't give way while it loads; `parent` is the process that must outlive it."""

    spec: VariantSpec
    rows: tuple[int, ...]
    trust_batch_axis: bool = False
    shapes: tuple[Shape, ...] = ()
    memory_limit: int = 0
    urgent: bool = False
    parent: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """What the child opened: its specs, what warm-up measured, and what the sweep chose, in words too. `defect` says why it couldn't."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    warmup: WarmUp = _NOT_WARM
    shape: Shape = _ONE
    why: str = ""
    load_seconds: float = 0.0
    defect: str = ""


def send(channel: socket.socket, message: Run | Done | Steer, fds: Sequence[int]) -> None:
    """Send one message. Raises OSError where nobody takes it, ValueError where it has too many tensors."""
    data = [orjson.dumps(tuple(message), tuple)]  # a Part is a tuple, too
    if len(data[0]) > MAX_MESSAGE or len(fds) > MAX_FDS:
        count = len(getattr(message, "parts", ()))
        raise ValueError(f"{count} tensors are more than one message takes ({MAX_MESSAGE} bytes, {MAX_FDS} new segments)")
    if fds:
        socket.send_fds(channel, data, fds)
    else:
        channel.sendmsg(data)


def receive(channel: socket.socket) -> tuple[list[Any] | None, list[int]]:
    """The next message and its descriptors, None when the other side has hung up. Raises OSError."""
    data, ancillary, flags, _ = channel.recvmsg(MAX_MESSAGE, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise OSError("a lane's message was cut short")
    return (orjson.loads(data) if data else None), fds.tolist()


def as_run(message: list[Any]) -> Run:
    number, rows, parts, *rest = message
    return Run(number, rows, _parts(parts), *rest)


def as_done(message: list[Any]) -> Done:
    number, started, finished, parts, *rest = message
    return Done(number, started, finished, _parts(parts), *rest)


def as_steer(message: list[Any]) -> Steer:
    return Steer(*message)


def _parts(parts: list[list[Any]]) -> list[Part]:
    return [Part(name, datatype, tuple(shape), *rest) for name, datatype, shape, *rest in parts]


def error_of(done: Done) -> TidegateError:
    """The error that the child's run ended with."""
    kind = getattr(errors, done.error, None)
    if not (isinstance(kind, type) and issubclass(kind, TidegateError)) or issubclass(kind, Overloaded):
        kind = BackendFailure
    return kind(done.text)


def write_document(document: Job | Ready) -> int:
    """A memfd that holds it."""
    fd = os.memfd_create("tidegate-lane", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(orjson.dumps(_plain(document), option=orjson.OPT_NON_STR_KEYS))
    return fd


def _plain(document: Job | Ready) -> dict[str, Any]:
    if isinstance(document, Ready):
        return asdict(document)
    plain = asdict(replace(document, spec=replace(document.spec, options=dict(document.spec.options))))
    plain["spec"]["path"] = str(document.spec.path)
    return plain


def read_job(fd: int) -> Job:
    """The job in a memfd, which is closed."""
    plain = _read(fd)
    spec = plain.pop("spec")
    spec |= {"path": Path(spec["path"]), "inputs": _specs(spec["inputs"]), "outputs": _specs(spec["outputs"])}
    shapes = tuple(Shape(**shape) for shape in plain.pop("shapes"))
    return Job(VariantSpec(**spec), shapes=shapes, **_tuples(plain))


def read_ready(fd: int) -> Ready:
    """What the child opened, from a memfd, which is closed."""
    plain = _read(fd)
    warmup, shape = plain["warmup"], Shape(**plain["shape"])
    warmup["latency"] = {int(rows): seconds for rows, seconds in warmup["latency"].items()}
    specs = {side: _specs(plain[side]) for side in ("inputs", "outputs")}
    return Ready(**plain | specs | {"warmup": WarmUp(**warmup), "shape": shape})


def _read(fd: int) -> dict[str, Any]:
    with open(fd, "rb") as file:
        file.seek(0)
        found: dict[str, Any] = orjson.loads(file.read())
    return found


def _specs(plain: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(**_tuples(tensor)) for tensor in plain)


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
