"""A server as a child process: started, waited for by its ready line, stopped by SIGTERM. The demo and the benchmarks use it."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

LOG_LINES = 15
"""How much of its log is shown when a server fails."""


class ServerError(Exception):
    """The server didn't start, died, or didn't stop: the message has its log's last lines."""


class ServerProcess:
    """A server that prints one line of JSON with `"event": "ready"` on stdout once it serves, and writes its log to stderr.

    It runs in a process group of its own, so that Ctrl-C on the terminal reaches the caller alone, who then stops it in order. Not in a
    session of its own: Linux (autogroup) would share the cores out between sessions, and a benchmark's client would wait for the server's
    background work as for its equal.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self.environment = dict(server_environment() if environment is None else environment)
        self.ready: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None

    def start(self, timeout: float = 120.0) -> dict[str, Any]:
        """Start, and wait up to `timeout` seconds for the ready line, which is returned. Raises ServerError."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment, process_group=0
            )
        lines: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=_read, args=(self._process.stdout, lines), daemon=True).start()
        deadline = time.monotonic() + timeout
        try:
            while not self.ready:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
                if line is None:
                    raise ServerError(self._failure(f"ended with status {self._process.wait()} before it was ready"))
                self.ready = _ready_event(line)
        except queue.Empty:
            self._kill()
            raise ServerError(self._failure(f"wasn't ready within {timeout:g} s")) from None
        except BaseException:
            self._kill()
            raise
        return self.ready

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def stop(self, timeout: float = 30.0) -> int:
        """Ask it to stop (SIGTERM) and wait; its exit status. Raises ServerError when it had to be killed."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            raise ServerError(self._failure(f"didn't stop within {timeout:g} s of SIGTERM and was killed")) from None

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _failure(self, what: str) -> str:
        text = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        lines = "\n".join(f"    {line}" for line in text) or "    (empty)"
        return f"the server {what}: {' '.join(self.command)}\n  the end of its log, {self.log}:\n{lines}"


def server_environment() -> dict[str, str]:
    """Our own environment without what is meant for the examples alone; on SIGTERM the server drains without the wait that lets a
    load balancer notice, since there's none."""
    ours = {name: value for name, value in os.environ.items() if name != "TIDEGATE_MODELS"}
    return {**ours, "TIDEGATE_DRAIN_DELAY": "0"}


def free_port(wanted: int, host: str = "127.0.0.1") -> int:
    """`wanted` when nothing listens there, else 0 (the server then takes any free port)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            return 0
    return wanted


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Hand on each line; keep reading to the end, so that the server never waits for a reader."""
    with stream:
        deque(map(lines.put, stream), maxlen=0)
    lines.put(None)


def _ready_event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and event.get("event") == "ready" else {}
