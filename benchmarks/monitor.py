"""`make bench-monitor`: how much of a core the monitor takes. Pages are read and rules judged as in a tick, without the network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

from monitor.evaluator import Evaluator
from monitor.loop import queries
from monitor.rules.build import read_rules
from monitor.series.text import Exposition
from monitor.series.vectors import Vectors, needed
from monitor.series.window import Reading, Window
from server.metrics.catalogue import REQUEST_SECONDS

INTERVAL = 5.0
TICKS = 30
MODELS = 10
HISTOGRAM = "tidegate_request_duration_seconds"


def ruleset_text(rules: int) -> str:
    """As many rules, of four kinds, over the models."""
    kinds = (
        "{{name: inference_latency, threshold: {n}ms, model: m{model}}}",
        "{{name: queue_rows, threshold: {n}, model: m{model}}}",
        "{{name: error_rate, threshold: {n}%, model: m{model}}}",
        "{{name: queue_latency, threshold: {n}ms, model: m{model}, quantile: p50}}",
    )
    lines = (kinds[i % len(kinds)].format(n=50 + i % 50, model=i % MODELS) for i in range(rules))
    return "pack: false\nwatchdog: false\nmetrics:\n" + "".join(f"  - {line}\n" for line in lines)


def page(lines: int, tick: int) -> str:
    """A server's page of about so many lines."""
    made = []
    for model in range(MODELS):
        label = f'model="m{model}",version="1",precision="fp32"'
        for number, bound in enumerate((*map(str, REQUEST_SECONDS), "+Inf")):
            made.append(f'{HISTOGRAM}_bucket{{{label},le="{bound}"}} {tick * 10 * (number + 1)}')
        made.append(f'tidegate_queue_rows{{model="m{model}",version="1"}} {tick % 7}')
        made += [f'tidegate_requests_total{{{label},outcome="{o}",reason=""}} {tick * 100}' for o in ("success", "failed", "rejected")]
        made += [
            f'tidegate_phase_duration_seconds_bucket{{{label},phase="queue",le="{bound}"}} {tick * 10}'
            for bound in (0.001, 0.005, 0.1, "+Inf")
        ]
    made += [f'other_series_total{{n="{number}"}} {tick}' for number in range(lines - len(made))]
    return "\n".join(made) + "\n"


def whole(rules: int, targets: int, lines: int) -> float:
    """CPU seconds of a tick: every target's page is read, every rule judged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(ruleset_text(rules))
        ruleset = read_rules(path)
    names = needed(queries(ruleset.rules))
    window, evaluator = Window(names), Evaluator(ruleset.rules)
    readers = [Exposition({"job": "tidegate", "instance": f"t{target}"}, names) for target in range(targets)]
    return _median(
        lambda tick: _tick(
            window, evaluator, [r.read(page_text) for r, page_text in zip(readers, [page(lines, tick)] * targets, strict=True)], tick
        )
    )


def _tick(window: Window, evaluator: Evaluator, pages: list[list[tuple[str, tuple[tuple[str, str], ...], float]]], tick: int) -> None:
    now = tick * INTERVAL
    window.ingest((Reading("tidegate", f"t{number}", samples) for number, samples in enumerate(pages)), now)
    evaluator.judge(Vectors(window, now).answer, now)


def _median(work: Callable[[int], None]) -> float:
    seconds = []
    for tick in range(1, TICKS + 1):
        began = process_time()
        work(tick)
        seconds.append(process_time() - began)
    return median(seconds[TICKS // 2 :])


def main() -> None:
    """Print the shares of a core, of ticks each 5 s."""
    for title, rules, targets, lines in (
        ("200 rules x 20 targets x 1,000 lines", 200, 20, 1000),
        ("1,000 rules x 100 targets x 400 lines", 1000, 100, 400),
    ):
        seconds = whole(rules, targets, lines)
        print(f"{title}: {seconds:.3f} s of CPU a tick, {seconds / INTERVAL:.1%} of a core (goal: 25%)")


if __name__ == "__main__":
    main()
