"""Structured logs on stderr: JSON lines, or text for people on a terminal. A line costs the event loop a queue's put and no I/O.

A thread renders and writes. When stderr takes no more, lines are dropped and counted; when clients provoke more lines than anyone reads,
the surplus is counted and told once a second. Values that come from clients are cut, and control characters in them escaped.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Set
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from random import random
from time import monotonic, time
from typing import Any, TextIO, TypeAlias

import orjson
from structlog.dev import ConsoleRenderer

from server.config import Log
from server.errors import (
    Cancelled,
    Denied,
    InvalidRequest,
    NotFound,
    TidegateError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from server.messages import InferRequest, InferResponse

Event: TypeAlias = dict[str, Any]
Render: TypeAlias = Callable[[Event], str]

QUEUED_LINES = 4096
WRITTEN_AT_ONCE = 256
LINES_PER_SECOND = 50
REASONS_TOLD = 16
MAX_ID = 256
MAX_TEXT = 2048
MAX_TRACEBACK = 16 << 10
CLOSE_TIMEOUT = 2.0

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CLIENTS_DOING = (InvalidRequest, NotFound, Unsupported, Unauthenticated, Denied, Cancelled)
_CONTROLS_JSON_KEEPS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class Journal:
    """What the server has to say. Also takes the standard library's log records (uvicorn's, asyncio's) until `close`."""

    def __init__(self, log: Log, stream: TextIO | None = None) -> None:
        self._slow = log.slow
        self._access_sample = log.access_sample
        self._failures = _Limiter("request_failed")
        self._slows = _Limiter("request_slow")
        self._bridge = _Bridge(self._put)
        out = stream or sys.stderr
        self._writer = _Writer(out, _renderer(log.format, out), self._suppressed)
        root = logging.getLogger()
        self._root_level = root.level
        root.addHandler(self._bridge)
        self.verbose = int(log.level == "debug")
        self.show({level for level, number in _LEVELS.items() if number >= _LEVELS[log.level]} - {"debug"}, self.verbose)

    def show(self, levels: Set[str], verbose: int) -> None:
        """Write lines of these of info, warning and error from now on; with `verbose` 1 those for debugging too, with 2 every request."""
        self.levels, self.verbose = frozenset(levels), verbose
        self._shown = self.levels | {"debug"} if verbose else self.levels
        self._sample = 1.0 if verbose > 1 else self._access_sample
        logging.getLogger().setLevel(min((_LEVELS[level] for level in self._shown), default=logging.CRITICAL))

    def redirect(self, file: TextIO | None) -> None:
        """Write to `file`, which is closed when another takes its place; None for where lines went at first."""
        self._writer.redirect(file)

    @property
    def dropped(self) -> int:
        """Lines lost because stderr took no more."""
        return self._writer.dropped

    def lifecycle(self, event: str, *, level: str = "info", **facts: object) -> None:
        """Something that happens to the server or to a model: starting, model_ready, model_unavailable, draining, …"""
        self._put({"event": event, "level": level, **facts})

    def finished(self, request: InferRequest, response: InferResponse, total: float, encode_seconds: float) -> None:
        """A request has its answer, `total` seconds after its last byte. Logged if it failed, was slow, or is in the sample."""
        if response.error is not None:
            if self._failures.allow(response.error.reason):
                self._put(
                    {"event": "request_failed", "level": _severity(response.error), **_facts(request, response, total, encode_seconds)}
                )
        elif total >= self._slow:
            if self._slows.allow(response.model):
                self._put({"event": "request_slow", "level": "warning", **_facts(request, response, total, encode_seconds)})
        elif self._sample and random() < self._sample:
            self._put({"event": "access", "level": "info", **_facts(request, response, total, encode_seconds)})

    def close(self) -> None:
        """Write what waits, for at most CLOSE_TIMEOUT seconds."""
        root = logging.getLogger()
        root.removeHandler(self._bridge)
        root.setLevel(self._root_level)
        self._writer.close()

    def _put(self, event: Event) -> None:
        if event["level"] in self._shown:
            self._writer.put(event)

    def _suppressed(self) -> Iterator[Event]:
        for limiter in (self._failures, self._slows, self._bridge.limiter):
            yield from limiter.told()


def _severity(error: TidegateError) -> str:
    if isinstance(error, _CLIENTS_DOING):
        return "info"
    return "warning" if isinstance(error, Unavailable) else "error"


def _facts(request: InferRequest, response: InferResponse, total: float, encode_seconds: float) -> Event:
    """What is known about a request and its answer; what isn't known is left out."""
    error, batch = response.error, response.batch
    facts: Event = {
        "id": request.id[:MAX_ID],
        "traceparent": request.trace.traceparent[:MAX_ID] if request.trace else "",
        "model": response.model[:MAX_ID],
        "version": (response.version or request.version)[:MAX_ID],
        "precision": batch.precision if batch else "",
        "rows": request.rows,
        "batch_rows": batch.rows if batch else 0,
        "lane": batch.lane if batch else "",
        "principal": request.principal.name if request.principal else "",
        "tenant": request.tenant[:MAX_ID],
    }
    return {
        **{name: value for name, value in facts.items() if value},
        "outcome": "failed" if error else "success",
        **({"reason": error.reason, "error": str(error)[:MAX_TEXT]} if error else {}),
        "total_ms": _ms(total),
        "phases_ms": {name: _ms(seconds) for name, seconds in _phases(request, response, total, encode_seconds)},
    }


def _phases(request: InferRequest, response: InferResponse, total: float, encode_seconds: float) -> Iterator[tuple[str, float]]:
    """The phases that the request reached, in seconds. Gather includes the hand-over to the lane."""
    batch, answered = response.batch, request.received + total
    yield "decode", request.decode_seconds
    if batch is not None:
        yield "queue", batch.cut - request.queued
        yield "gather", batch.started - batch.cut
        yield "compute", batch.finished - batch.started
        yield "scatter", answered - batch.finished - encode_seconds
    elif request.queued:
        yield "queue", answered - request.queued - encode_seconds
    yield "encode", encode_seconds


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)


class _Limiter:
    """Lets LINES_PER_SECOND lines of a kind through and counts the rest by reason. Any thread."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._second = 0
        self._lines = 0
        self._rest: dict[str, int] = {}

    def allow(self, reason: str) -> bool:
        with self._lock:
            second = int(monotonic())
            if second != self._second:
                self._second, self._lines = second, 0
            self._lines += 1
            if self._lines <= LINES_PER_SECOND:
                return True
            if reason not in self._rest and len(self._rest) >= REASONS_TOLD:
                reason = "other"
            self._rest[reason] = self._rest.get(reason, 0) + 1
            return False

    def told(self) -> Iterator[Event]:
        """One line about what was held back since the last time, if anything was."""
        with self._lock:
            rest, self._rest = self._rest, {}
        if rest:
            yield {"event": f"{self._kind}_suppressed", "level": "warning", "count": sum(rest.values()), "reasons": rest}


class _Bridge(logging.Handler):
    """Standard library records → events."""

    def __init__(self, put: Callable[[Event], None]) -> None:
        super().__init__()
        self._put = put
        self.limiter = _Limiter("log")

    def emit(self, record: logging.LogRecord) -> None:
        if not self.limiter.allow(record.name):
            return
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that don't fit the format
            text = str(record.msg)
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        event: Event = {"event": text[:MAX_TEXT], "level": level if level in _LEVELS else "info", "logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            event["exception"] = "".join(traceback.format_exception(*record.exc_info))[-MAX_TRACEBACK:]
        self._put(event)


class _Writer:
    """A bounded queue and the thread that empties it."""

    def __init__(self, out: TextIO, render: Render, more: Callable[[], Iterator[Event]]) -> None:
        self.dropped = 0
        self._told = 0
        self._first = self._next = self._out = out
        self._render = render
        self._more = more
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="logs", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        if self._queue.qsize() >= QUEUED_LINES:
            self.dropped += 1
            return
        event["timestamp"] = time()
        self._queue.put(event)

    def redirect(self, file: TextIO | None) -> None:
        self._next = file or self._first

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        going, looked = True, monotonic()
        while going:
            events = list(self._take())
            going = None not in events
            if not going or monotonic() - looked >= 1.0:
                looked = monotonic()
                events += self._told_once()
            if self._next is not self._out:
                if self._out is not self._first:
                    self._out.close()
                self._out = self._next
            lines = [self._render(event) for event in events if event is not None]
            if lines:
                try:
                    _write(self._out, "".join(lines))
                except (OSError, ValueError):  # nobody reads any more, or the stream is closed
                    self.dropped += len(lines)

    def _take(self) -> Iterator[Event | None]:
        """What waits, at most WRITTEN_AT_ONCE; nothing after a second without a line."""
        try:
            yield self._queue.get(timeout=1.0)
            for _ in range(WRITTEN_AT_ONCE - 1):
                yield self._queue.get_nowait()
        except Empty:
            return

    def _told_once(self) -> Iterator[Event]:
        for event in self._more():
            yield {"timestamp": time(), **event}
        dropped = self.dropped
        if dropped > self._told:
            yield {"timestamp": time(), "event": "log_lines_dropped", "level": "warning", "count": dropped - self._told}
            self._told = dropped


def _write(out: TextIO, text: str) -> None:
    """Write all of `text`. By file descriptor where there is one: a thread stuck in the stream's own write would hold its lock, and the
    interpreter couldn't exit."""
    try:
        descriptor = out.fileno()
    except (OSError, ValueError, AttributeError):
        out.write(text)
        out.flush()
        return
    rest = memoryview(text.encode("utf-8", "backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            waiting.poll(1000)


def _renderer(form: str, out: TextIO) -> Render:
    if form == "json" or (form == "auto" and not out.isatty()):
        return lambda event: _json({"timestamp": _iso(event.pop("timestamp")), "level": event.pop("level"), **event}) + "\n"
    console = ConsoleRenderer(colors=out.isatty())

    def for_people(event: Event) -> str:
        trace = {"exception": event.pop("exception")} if "exception" in event else {}
        facts = {name: _escaped(value) for name, value in event.items()}
        return f"{console(None, '', {**facts, **trace, 'timestamp': _iso(event['timestamp'])})}\n"

    return for_people


def _escaped(value: object) -> object:
    """Text without control characters, which a terminal would obey and which would forge lines."""
    return value.translate(_CONTROLS) if isinstance(value, str) else value


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(event: Event) -> str:
    try:
        text = orjson.dumps(event, default=str).decode()
    except TypeError:  # half a surrogate pair, an integer beyond 64 bits
        return json.dumps(event, default=str)
    return text if text.isascii() else text.translate(_CONTROLS_JSON_KEEPS)
