"""The thread that makes spans of traces and sends them: by OTLP over HTTP, in batches, and to files that trace_file names.

What waits is bounded: when the collector takes no more, traces are dropped and counted. opentelemetry is loaded where there's an endpoint.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from random import getrandbits
from time import monotonic, monotonic_ns, time_ns
from typing import Any, TypeAlias

import orjson

from server.config import VERSION
from server.errors import ConfigError
from server.tracing.tracer import MAX_TEXT, Trace

log = logging.getLogger(__name__)

WAITING = 2048
AT_ONCE = 256  # traces in an export
LINGER = 1.0  # seconds that one waits for others
CLOSE_TIMEOUT = 5.0
EXPORT_TIMEOUT = 5.0

Export: TypeAlias = Callable[[Sequence[Trace]], bool]
"""Sends traces; False where they're lost."""


class SpanSender:
    """`put` from any thread. `export` None: traces go to files only."""

    def __init__(self, export: Export | None) -> None:
        self.dropped = 0
        self._export = export
        self._queue: SimpleQueue[Trace | None] = SimpleQueue()
        self._written: Counter[Path] = Counter()
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._thread.start()

    def put(self, trace: Trace) -> None:
        if self._queue.qsize() >= WAITING:
            self.dropped += 1
        else:
            self._queue.put(trace)

    def close(self) -> None:
        """Send what waits, for at most CLOSE_TIMEOUT seconds."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        going = True
        while going:
            taken = list(self._take())
            going = None not in taken
            traces = [trace for trace in taken if trace is not None]
            if traces:
                self._write([trace for trace in traces if trace.traced.rule.file is not None])
                if self._export is not None and not self._export(traces):
                    self.dropped += len(traces)

    def _take(self) -> Iterator[Trace | None]:
        """A first one, however long it takes, and those that follow within LINGER, at most AT_ONCE."""
        trace = self._queue.get()
        yield trace
        end = monotonic() + LINGER
        for _ in range(AT_ONCE - 1):
            if trace is None:
                return
            try:
                trace = self._queue.get(timeout=max(0.0, end - monotonic()))
            except Empty:
                return
            yield trace

    def _write(self, traces: Sequence[Trace]) -> None:
        for trace in traces:
            rule = trace.traced.rule
            assert rule.file is not None
            number, self._written[rule.file] = self._written[rule.file], self._written[rule.file] + 1
            path = rule.file.with_name(f"{rule.file.name}.{number // rule.frequency}") if rule.frequency else rule.file
            try:
                with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "ab") as file:
                    file.write(orjson.dumps(_line(trace)) + b"\n")
            except OSError as error:
                self.dropped += 1
                log.warning("trace_file %s: %s", path, error.strerror)


def _line(trace: Trace) -> dict[str, Any]:
    """A trace as a line of JSON, times in nanoseconds."""
    clock = _Clock()
    return {
        "trace_id": trace.traced.trace_id,
        "parent_id": trace.traced.parent_id,
        **trace.facts(),
        "begin_ns": clock(trace.received),
        "end_ns": clock(trace.received + trace.total),
        "phases": {name: [clock(begin), clock(max(begin, end))] for name, begin, end in trace.phases()},
        **({"reason": trace.reason, "error": trace.error[:MAX_TEXT]} if trace.reason else {}),
    }


class _Clock:
    """Seconds of time.monotonic → whole nanoseconds of Unix time."""

    def __init__(self) -> None:
        self._offset = time_ns() - monotonic_ns()

    def __call__(self, seconds: float) -> int:
        return round(seconds * 1e9) + self._offset


def otlp_export(endpoint: str, server_name: str) -> Export:
    """Sends spans to a collector. Raises ConfigError where opentelemetry isn't installed."""
    try:
        sdk: Any = import_module("opentelemetry.sdk.trace")
        resources: Any = import_module("opentelemetry.sdk.resources")
        api: Any = import_module("opentelemetry.trace")
        http: Any = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        scopes: Any = import_module("opentelemetry.sdk.util.instrumentation")
    except ImportError as error:
        raise ConfigError(f"tracing.endpoint needs opentelemetry ({error.name} isn't installed): pip install 'tidegate[trace]'") from error
    url = endpoint if endpoint.rstrip("/").endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    exporter = http.OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT)
    resource = resources.Resource.create({"service.name": server_name, "service.version": VERSION})
    scope = scopes.InstrumentationScope("tidegate", VERSION)

    def export(traces: Sequence[Trace]) -> bool:
        spans = [span for trace in traces for span in _spans(sdk, api, resource, scope, trace)]
        return bool(exporter.export(spans).value == 0)

    return export


def _spans(sdk: Any, api: Any, resource: Any, scope: Any, trace: Trace) -> Iterator[Any]:
    """The request's span, and one for each phase below it."""
    traced, clock = trace.traced, _Clock()
    trace_id, sampled = int(traced.trace_id, 16), api.TraceFlags(api.TraceFlags.SAMPLED)

    def context(span_id: int, *, remote: bool = False) -> Any:
        return api.SpanContext(trace_id, span_id, is_remote=remote, trace_flags=sampled)

    def span(name: str, own: Any, parent: Any, begin: float, end: float, **more: Any) -> Any:
        times = {"start_time": clock(begin), "end_time": clock(max(begin, end))}
        return sdk.ReadableSpan(name, own, parent, resource, instrumentation_scope=scope, **times, **more)

    root = context(getrandbits(64) or 1)
    parent = context(int(traced.parent_id, 16), remote=True) if traced.parent_id else None
    facts = {f"tidegate.{name}": value for name, value in trace.facts().items()}
    status = api.Status(api.StatusCode.ERROR, trace.error[:MAX_TEXT]) if trace.reason else api.Status(api.StatusCode.UNSET)
    attributes = {**facts, **({"error.type": trace.reason} if trace.reason else {})}
    end, name = trace.received + trace.total, f"infer {trace.model[:MAX_TEXT]}"
    yield span(name, root, parent, trace.received, end, kind=api.SpanKind.SERVER, attributes=attributes, status=status)
    for name, begin, end in trace.phases():
        yield span(name, context(getrandbits(64) or 1), root, begin, end, attributes={})
