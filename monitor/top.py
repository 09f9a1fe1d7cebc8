"""`tidegate monitor top`: a live table of models, GPUs and what would alert, from the same queries that the rules ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic, time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from monitor.alerts import Alert, State, Vector
from monitor.evaluator import Evaluator
from monitor.metrics.named import NAMED
from monitor.metrics.quantities import Unit
from monitor.metrics.quantities import show as shown
from monitor.metrics.query import Query
from monitor.metrics.shapes import Ask
from monitor.rules.model import Ruleset
from monitor.rules.settings import Sources
from monitor.series.vectors import Vectors, needed
from monitor.series.window import Reading, Window
from monitor.sources.scrape import Scraper

INTERVAL = 2.0
MODEL_COLUMNS = (
    ("ready", "model_ready"),
    ("p99", "inference_latency"),
    ("rows/s", "throughput"),
    ("rows a batch", "batch_rows"),
    ("queue", "queue_rows"),
    ("errors", "error_rate"),
    ("rejected", "rejection_rate"),
    ("capacity", "capacity_utilization"),
)
GPU_COLUMNS = (("busy", "gpu_utilization"), ("memory", "gpu_memory"), ("°C", "gpu_temperature"), ("power", "gpu_power"))


async def show(ruleset: Ruleset | None, target: str, times: int) -> None:
    """Look every INTERVAL seconds and show it, `times` times or until stopped; a rules file brings its targets and its alerts."""
    sources = ruleset.settings.sources if ruleset else Sources(targets=(target,))
    rules = ruleset.rules if ruleset else ()
    window = Window(needed([*_queries().values(), *(rule.condition for rule in rules)]))
    scraper, evaluator = Scraper("tidegate", sources.targets, sources), Evaluator(rules)
    zero, looks = time() - monotonic(), 0
    try:
        with Live(console=Console(), refresh_per_second=4) as live:
            while not times or looks < times:
                readings = await scraper.read()
                now = zero + monotonic()
                window.ingest(readings, now)
                vectors = Vectors(window, now)
                evaluator.judge(vectors.answer, now)
                live.update(tables(vectors, readings, list(evaluator.active())))
                looks += 1
                if looks != times:
                    await asyncio.sleep(INTERVAL)
    finally:
        await scraper.close()


def tables(vectors: Vectors, readings: Sequence[Reading], alerts: Sequence[Alert]) -> Group:
    """What is known, as tables."""
    answers = {name: vectors.of(query) for name, query in _queries().items()}
    parts = [_table(("model",), MODEL_COLUMNS, answers), _table(("instance", "gpu"), GPU_COLUMNS, answers)]
    down = [Text(f"{reading.instance}: {reading.error}", "red") for reading in readings if not reading.ok]
    firing = [alert for alert in alerts if alert.state is State.FIRING and alert.name != "Watchdog"]
    lines = [Text(f"{alert.level} {alert.annotations.get('summary', alert.name)}", "bold red") for alert in firing]
    return Group(*(part for part in parts if part.row_count), *down, *lines)


def _queries() -> Mapping[str, Query]:
    """Each column's query, as a rule would ask it."""
    named = [NAMED[name] for _, name in (*MODEL_COLUMNS, *GPU_COLUMNS)]
    return {metric.name: metric.build(Ask((), metric.by, metric.window, metric.q)) for metric in named}


def _table(by: tuple[str, ...], columns: Sequence[tuple[str, str]], answers: Mapping[str, Vector]) -> Table:
    table = Table(*by, *(title for title, _ in columns), box=None, pad_edge=False)
    for labels in sorted({labels for _, name in columns for labels in answers[name]}):
        values = dict(labels)
        if values.get(by[-1]):
            table.add_row(*(values.get(label, "") for label in by), *(_cell(name, answers[name].get(labels)) for _, name in columns))
    return table


def _cell(name: str, value: float | None) -> str:
    if value is None or value != value:
        return "–"
    if name == "model_ready":
        return "yes" if value else "no"
    return shown(value, Unit.COUNT if NAMED[name].unit is Unit.RATE else NAMED[name].unit)
