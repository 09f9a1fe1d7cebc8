"""What the monitor says of itself: its own figures, its /metrics and its health, on a port of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from monitor.actions import Outcome
from monitor.alerts import Labels
from monitor.series.window import Reading, Sample
from server.errors import ConfigError

HEAD_TIMEOUT = 5.0
MAX_HEAD = 8 << 10
SHARED_JOBS = ("host", "nvml")
"""Jobs whose samples are on the monitor's own page too, so that a Prometheus that scrapes it has them."""


@dataclass(slots=True)
class Figures:
    """Counts of what the monitor does."""

    ticks: int = 0
    last_tick: float = 0.0
    seconds: float = 0.0
    reload_failed: bool = False
    muted: int = 0
    readings: Sequence[Reading] = ()
    actions: Counter[tuple[str, str]] = field(default_factory=Counter)
    tell: Callable[[str], None] = lambda text: None

    def ticked(self, now: float, seconds: float, readings: Sequence[Reading]) -> None:
        """A tick is over."""
        self.ticks += 1
        self.last_tick, self.seconds, self.readings = now, seconds, readings

    def acted(self, outcome: Outcome) -> None:
        """An action was taken, or held back."""
        self.actions[outcome.action, outcome.text.split(":")[0]] += 1
        self.tell(f"action {outcome.action} for {outcome.alert}: {outcome.text}")


def page(figures: Figures, alerts: Mapping[str, int], notified: Mapping[tuple[str, str], int], queued: Mapping[str, int]) -> str:
    """The monitor's own /metrics."""
    lines = [
        *_family("tidegate_monitor_ticks_total", "counter", "Ticks done.", {(): figures.ticks}),
        *_family("tidegate_monitor_tick_seconds", "gauge", "Seconds that judging took in the last tick.", {(): figures.seconds}),
        *_family("tidegate_monitor_last_tick_timestamp_seconds", "gauge", "When the last tick was.", {(): figures.last_tick}),
        *_family(
            "tidegate_monitor_config_reload_failed",
            "gauge",
            "1 while the rules file on disk can't be used.",
            {(): float(figures.reload_failed)},
        ),
        *_family("tidegate_monitor_alerts", "gauge", "Alerts by state.", {(("state", state),): n for state, n in alerts.items()}),
        *_family("tidegate_monitor_alerts_muted", "gauge", "Firing alerts of which nobody is told.", {(): figures.muted}),
        *_family(
            "tidegate_monitor_notifications_total",
            "counter",
            "Notifications by what came of them.",
            _pairs(("notifier", "outcome"), notified),
        ),
        *_family(
            "tidegate_monitor_notifications_queued", "gauge", "Undelivered.", {(("notifier", name),): n for name, n in queued.items()}
        ),
        *_family(
            "tidegate_monitor_actions_total", "counter", "Actions by what came of them.", _pairs(("action", "outcome"), figures.actions)
        ),
        *_shared(figures.readings),
    ]
    return "\n".join(lines) + "\n"


def _pairs(names: tuple[str, str], counts: Mapping[tuple[str, str], int]) -> dict[Labels, float]:
    return {((names[0], first), (names[1], second)): float(n) for (first, second), n in counts.items()}


def _family(name: str, kind: str, text: str, values: Mapping[Labels, float]) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{_labels(labels)} {value!r}"


def _shared(readings: Sequence[Reading]) -> Iterable[str]:
    samples: list[Sample] = [sample for reading in readings if reading.job in SHARED_JOBS for sample in reading.samples]
    for name, labels, value in sorted(samples, key=lambda sample: sample[:2]):
        yield f"{name}{_labels(tuple(pair for pair in labels if pair[0] not in ('job', 'instance')))} {value!r}"


def _labels(labels: Labels) -> str:
    escaped = (f'{name}="{value}"' for name, value in ((n, v.replace("\\", "\\\\").replace('"', '\\"')) for n, v in labels))
    return "{" + ",".join(escaped) + "}" if labels else ""


class StatusServer:
    """GET /metrics and /health. `port` is known after `start`."""

    def __init__(self, listen: str, metrics: Callable[[], str], healthy: Callable[[], bool]) -> None:
        host, _, port = listen.rpartition(":")
        self._host, self.port = host.strip("[]") or "0.0.0.0", int(port)
        self._routes: Mapping[str, Callable[[], tuple[str, str]]] = {
            "/metrics": lambda: ("200 OK", metrics()),
            "/health": lambda: ("200 OK", "ok\n") if healthy() else ("503 Service Unavailable", "no tick for too long\n"),
        }
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind and serve. Raises ConfigError where the address can't be bound."""
        try:
            self._server = await asyncio.start_server(self._connected, self._host, self.port, limit=MAX_HEAD)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"can't listen on {self._host}:{self.port} for the monitor's own metrics: {error}. Choose another `listen`"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.split(b" ", 2)))
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the client left, stalls, or sends what is no request
        finally:
            writer.close()

    def _answer(self, words: list[bytes]) -> bytes:
        path = words[1].decode("latin-1").partition("?")[0] if len(words) == 3 and words[0] == b"GET" else ""
        status, body = self._routes.get(path, lambda: ("404 Not Found", "GET /metrics or /health\n"))()
        content = body.encode()
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        return head.encode() + content
