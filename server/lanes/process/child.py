"""What runs in a process lane's child: opens one backend, warms it up, then runs one batch after the other until the parent hangs up.

It dies with its parent, leaves the terminal's and the service's signals to it, and loads at low CPU priority. A thread of its own answers
the parent's pings, so that a long run isn't taken for a hang.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread, get_native_id
from time import monotonic
from typing import NoReturn

from server.backends.base import Backend
from server.backends.declared import open_declared
from server.backends.registry import backend_named
from server.errors import DeviceLost, ModelDefect, TidegateError
from server.lanes.base import RunResult
from server.lanes.process.answering import Answers, answer_all
from server.lanes.process.messages import (
    LOADING_NICE,
    MAX_TEXT,
    Done,
    Job,
    Ready,
    Run,
    Steer,
    as_run,
    as_steer,
    read_job,
    receive,
    send,
    write_document,
)
from server.lanes.process.segments import OutputBlocks, map_segment, tensor_in
from server.lanes.run import Runs, timed_run
from server.lanes.sweep import Shape, file_size, sweep
from server.lanes.warmup import warm_up
from server.timeslice import LONG, USUAL, take_turns

_PR_SET_PDEATHSIG = 1
_CAP_SYS_NICE = 23


def main(channel_fd: int, pulse_fd: int, job_fd: int) -> None:
    """Serve batches from the socket `channel_fd` until it's closed at the other end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which drains first and then hangs up
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    for fd in (channel_fd, pulse_fd, job_fd):
        os.set_inheritable(fd, False)
    job = read_job(job_fd)
    _die_with(job.parent)
    Path("/proc/self/comm").write_text(f"lane {job.spec.model}")  # what ps and top show; the kernel cuts it
    _limit(job)
    Thread(target=_answer_pings, args=(pulse_fd,), name="pulse", daemon=True).start()
    take_turns(LONG if job.spec.device == "cpu" else USUAL)
    with socket.socket(fileno=channel_fd) as channel:
        backend = _open(channel, job)
        if backend is not None:
            _serve(channel, backend)
            backend.close()


def _die_with(parent: int) -> None:
    """SIGKILL when the thread that started us ends: the lane is opened in one that lives as long as the server."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(0)


def _limit(job: Job) -> None:
    """RLIMIT_DATA bounds what is allocated, not what is mapped: over it an allocation fails, and the run that asked for it with it."""
    if job.memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory_limit, job.memory_limit))


def _answer_pings(pulse_fd: int) -> None:
    with socket.socket(fileno=pulse_fd) as pulse, suppress(OSError):
        while ping := pulse.recv(16):
            pulse.send(ping)
    os._exit(0)  # the parent is gone, or wants us gone


def _open(channel: socket.socket, job: Job) -> Backend | None:
    """Open and warm up; tell the parent. None where the model can't be opened."""
    backend: Backend | None = None
    begun = monotonic()
    try:
        backend, ready = _open_backend(job) if job.urgent else _at_low_priority(job.spec.threads, partial(_open_backend, job))
    except ModelDefect as defect:
        ready = Ready(defect=str(defect) or "no reason was given")
    ready = replace(ready, load_seconds=monotonic() - begun)
    fd = write_document(ready)
    try:
        send(channel, Done(0, begun, monotonic()), [fd])
    finally:
        os.close(fd)
    return backend


def _open_backend(job: Job) -> tuple[Backend, Ready]:
    backend_class = backend_named(job.spec.backend)
    begun = monotonic()
    backend = open_declared(backend_class, job.spec)
    opening = (monotonic() - begun, file_size(job.spec.path))
    warmup = warm_up(backend, job.rows, trust_batch_axis=job.trust_batch_axis)
    ready = Ready(backend.inputs, backend.outputs, warmup, Shape(1, job.spec.threads))
    if len(job.shapes) <= 1:
        return backend, replace(ready, shape=job.shapes[0]) if job.shapes else ready

    def another(threads: int) -> Backend:
        return open_declared(backend_class, replace(job.spec, threads=threads))

    choice = sweep(backend, job.shapes, warmup, opening, another)
    for other in choice.backends[1:]:  # each lane has a process of its own
        other.close()
    return choice.backends[0], replace(ready, shape=choice.shape, why=choice.why)


def _at_low_priority(threads: int, work: Callable[[], tuple[Backend, Ready]]) -> tuple[Backend, Ready]:
    """Do `work` in a thread that gives way to the server's. Threads that it starts inherit that, and only the privileged can raise
    themselves again; where we can't, a backend with a pool of threads is opened on one core instead, which is undone freely."""
    results: list[tuple[Backend, Ready] | ModelDefect] = []
    allowed, normal = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    nice = threads == 1 or _may_raise_priority()

    def in_thread() -> None:
        if nice:
            os.setpriority(os.PRIO_PROCESS, get_native_id(), max(normal, LOADING_NICE))
        else:
            os.sched_setaffinity(0, {max(allowed)})
        try:
            results.append(work())
        except ModelDefect as defect:
            results.append(defect)

    thread = Thread(target=in_thread, name="open")
    thread.start()
    thread.join()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended, or it's not ours to raise
            os.setpriority(os.PRIO_PROCESS, int(task), normal)
            os.sched_setaffinity(int(task), allowed)
    if not results:  # the thread's own last words are on stderr
        sys.exit("a lane's process ends: its model's backend failed while it opened")
    if isinstance(results[0], ModelDefect):
        raise results[0]
    return results[0]


def _may_raise_priority() -> bool:
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    effective = next((line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")), "0")
    return soft >= 20 or bool(int(effective, 16) >> _CAP_SYS_NICE & 1)


def _serve(channel: socket.socket, backend: Backend) -> None:
    inputs: dict[int, mmap.mmap] = {}
    blocks = OutputBlocks()
    while True:
        try:
            message, fds = receive(channel)
        except ConnectionError:
            return
        if message is None:
            return
        if len(message) == len(Steer._fields):  # for a stream that had ended by itself
            blocks.give(as_steer(message).returned)
            continue
        run = as_run(message)
        for number in run.closed:
            inputs.pop(number).close()
        for (number, size), fd in zip(run.opened, fds, strict=True):
            inputs[number] = map_segment(fd, size)
        blocks.give(run.returned)
        if run.stream:
            answers = Answers(backend)
            try:
                answer_all(channel, run, answers, blocks, partial(_run, answers, run, inputs, blocks))
            except ConnectionError:
                return
            continue
        done = _run(backend, run, inputs, blocks)
        if done.error == DeviceLost.__name__:  # the next process begins with a new context
            _end(done.text)
        try:
            send(channel, done, blocks.fds)
        except ValueError as error:
            send(channel, Done(run.number, done.started, done.finished, error="BackendFailure", text=f"the outputs: {error}"), [])
        except ConnectionError:
            return
        blocks.sent()


def _end(why: str) -> NoReturn:
    """At once: nothing runs in a process whose GPU context is gone, what its libraries do at exit least of all."""
    sys.stderr.write(f"a lane's process ends: {why}\n")
    sys.stderr.flush()
    os._exit(1)


def _run(backend: Runs, run: Run, inputs: dict[int, mmap.mmap], blocks: OutputBlocks) -> Done:
    now = monotonic()
    try:
        tensors = {part.name: tensor_in(inputs[part.segment], part) for part in run.parts}
        result = timed_run(backend, tensors, run.rows)
        parts = blocks.write(result.outputs) if result.outputs else []
    except TidegateError as error:  # strings that can't be read back
        return _failed(run, RunResult({}, now, now, error), type(error).__name__, str(error))
    except KeyError as error:
        return _failed(run, result, "BackendFailure", f"an output came as numpy {error.args[0]}, which the protocol has no datatype for")
    except (OSError, MemoryError) as error:
        return _failed(run, RunResult({}, now, now), "BackendFailure", f"no memory for this batch's tensors: {error}")
    if result.error is not None:
        return _failed(run, result, type(result.error).__name__, str(result.error))
    return Done(run.number, result.started, result.finished, parts, blocks.opened, blocks.closed)


def _failed(run: Run, result: RunResult, error: str, text: str) -> Done:
    return Done(run.number, result.started, result.finished, error=error, text=text[:MAX_TEXT])
