"""Starts a lane's child and waits until its model is open. Blocks; call it off the loop, in a thread that lives as long as the lane:
the kernel kills the child when the thread that started it ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import psutil

import server
from server.errors import ModelDefect
from server.lanes.process.messages import LOADING_NICE, Job, Ready, read_ready, receive, write_document

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
IDLE = 120.0  # seconds without CPU time or a read after which a child that opens its model hangs
STOP_POLL = 0.1  # seconds between looks at whether the lane is still wanted
# Imports take as much CPU as opening a small model. They give way too, in a thread: only the privileged can raise themselves again.
_BOOT = """
import importlib, json, os, sys, threading
def load():
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), int(sys.argv[4]))
    importlib.import_module("server.lanes.process.child")
sys.path[:] = json.loads(sys.argv[5])
thread = threading.Thread(target=load)
thread.start()
thread.join()
sys.modules["server.lanes.process.child"].main(*map(int, sys.argv[1:4]))
"""
_ROOT = str(Path(server.__path__[0]).parent)


@dataclass(frozen=True, slots=True)
class Child:
    """A running child whose model is open: batches go over `channel`, pings over `pulse`. `pidfd` is -1 where the kernel has none."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    pulse: socket.socket
    pidfd: int
    ready: Ready

    def end(self) -> str:
        """Kill it, if it isn't dead, close what leads to it, and say in words how it ended."""
        for end in (self.channel, self.pulse):
            end.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        return _ended(self.process)


def launch(job: Job, wanted: Callable[[], bool] = lambda: True, idle: float = IDLE) -> Child:
    """Start a child for `job`; stop waiting for it when it isn't `wanted` any more, or when it has done nothing for `idle` seconds. Raises
    ModelDefect: in the child's own words, or that its process couldn't be started, ended, hung, or was given up."""
    where = f"model {job.spec.model!r} version {job.spec.version}"
    try:
        process, channel, pulse = _start(job)
    except OSError as error:
        raise ModelDefect(f"{where}: its process can't be started: {error.strerror}") from error
    child = Child(process, channel, pulse, -1, Ready())
    try:
        ready = _wait(channel, _Work(process.pid, idle), wanted)
    except TimeoutError:
        child.end()
        raise ModelDefect(f"{where}: its process hung while it opened the model: no CPU time and nothing read for {idle:g} s") from None
    except BaseException:
        child.end()
        raise
    if ready is None or ready.defect:
        how = child.end()
        raise ModelDefect(ready.defect if ready else f"{where}: its process {how} while it opened the model; stderr has its last words")
    channel.setblocking(False)
    pulse.setblocking(False)
    return replace(child, pidfd=_pidfd(process.pid), ready=ready)


def _start(job: Job) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket]:
    """The process, and our ends of its channel and its pulse. Raises OSError; nothing stays open then."""
    with ExitStack() as theirs, ExitStack() as ours:
        job_fd = write_document(replace(job, parent=os.getpid()))
        theirs.callback(os.close, job_fd)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        for our, their in pairs:
            ours.enter_context(our)
            theirs.enter_context(their)
        fds = (*(their.fileno() for _, their in pairs), job_fd)
        normal = os.getpriority(os.PRIO_PROCESS, 0)
        nice = normal if job.urgent else max(normal, LOADING_NICE)
        command = [sys.executable, "-c", _BOOT, *map(str, fds), str(nice), json.dumps([_ROOT, *sys.path])]
        threads = dict.fromkeys(THREAD_VARIABLES, str(max(1, job.spec.threads)))
        environment = {**os.environ, **threads}
        process = subprocess.Popen(command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        ours.pop_all()
        return process, pairs[0][0], pairs[1][0]


class _Work:
    """Whether a process does anything. Loading may take minutes, so time alone says nothing."""

    def __init__(self, pid: int, idle: float) -> None:
        self._process = psutil.Process(pid)
        self._idle = idle
        self._done: object = None
        self._since = monotonic()

    def look(self) -> None:
        """Raises TimeoutError where it has done nothing for too long."""
        with suppress(psutil.Error):  # it has ended: its channel says so
            with self._process.oneshot():
                done = (self._process.cpu_times(), self._process.io_counters().read_chars)
            if done != self._done:
                self._done, self._since = done, monotonic()
        if monotonic() - self._since > self._idle:
            raise TimeoutError


def _wait(channel: socket.socket, work: _Work, wanted: Callable[[], bool]) -> Ready | None:
    """What the child opened, None where it ended before or isn't wanted. Raises TimeoutError where it hangs."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while wanted():
        work.look()
        if poll.poll(STOP_POLL * 1000):
            with suppress(ConnectionError):
                _, fds = receive(channel)
                return read_ready(fds[0]) if fds else None
            return None
    return None


def _ended(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    status = process.wait()
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _pidfd(pid: int) -> int:
    with suppress(OSError):
        return os.pidfd_open(pid)
    return -1
