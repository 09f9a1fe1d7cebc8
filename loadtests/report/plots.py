"""The plots of a run as SVG: latency's distribution, latency over time, rows per run, goodput against load. Drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loadtests.report.document import Report, bucket_end
from loadtests.samples import Floats

SIZE = (7.0, 3.4)  # inches
INK, SOFT, GOOD, BAD = "#1f4e79", "#9db7d1", "#2e7d32", "#c62828"
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_UNSTABLE = re.compile(r"<metadata>.*?</metadata>", re.S)


def plots(report: Report) -> Iterator[tuple[str, str]]:
    """(title, SVG) of each plot that the run has data for."""
    counts = _histogram(report)
    if counts.any():
        yield "Latency: share of answers within", _drawn(lambda axes: _distribution(axes, counts, report))
        yield "Latency over time, by when a request was due", _drawn(lambda axes: _over_time(axes, report))
    if report.batch_rows:
        yield "Rows per run, as answers told", _drawn(lambda axes: _rows(axes, report))
    yield "Answers against load, a point a second", _drawn(lambda axes: _goodput(axes, report))


def _drawn(draw: Callable[[Axes], None]) -> str:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    return _UNSTABLE.sub("", text[text.index("<svg") :])


def _histogram(report: Report) -> Floats:
    highest = max((max(block.buckets, default=0) for block in report.blocks), default=0)
    counts = np.zeros(highest + 1)
    for block in report.blocks:
        for number, answers in block.buckets.items():
            counts[number] += answers
    return counts


def _distribution(axes: Axes, counts: Floats, report: Report) -> None:
    """On a scale that spreads out the tail: each gridline is ten times rarer."""
    ends = bucket_end(np.arange(len(counts))) * 1e3
    beyond = 1 - np.cumsum(counts) / counts.sum()
    shown = (np.cumsum(counts) > 0) & (beyond > 0)
    axes.plot(1 / np.maximum(beyond[shown], 1e-9), ends[shown], color=INK)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.6g} %" if value > 1 else "0 %"))
    axes.set_xlabel("share of answers")
    axes.set_ylabel("ms")
    within = report.scenario.get("slo", {}).get("within")
    if within:
        axes.axhline(float(within) * 1e3, color=BAD, linewidth=0.8, linestyle="--")


def _over_time(axes: Axes, report: Report) -> None:
    for q, colour in ((0.5, SOFT), (0.9, INK), (0.99, BAD)):
        values = [_quantile(block.buckets, q) for block in report.blocks]
        axes.plot(range(len(values)), values, color=colour, label=f"p{q * 100:g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.set_xlabel("s")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, ncols=3)


def _quantile(buckets: dict[int, int], q: float) -> float:
    if not buckets:
        return float("nan")
    numbers = np.asarray(sorted(buckets))
    passed = np.cumsum([buckets[int(number)] for number in numbers])
    return float(bucket_end(numbers)[np.searchsorted(passed, q * passed[-1])] * 1e3)


def _rows(axes: Axes, report: Report) -> None:
    rows = sorted(report.batch_rows)
    total = sum(report.batch_rows.values())
    axes.bar(rows, [100 * report.batch_rows[row] / total for row in rows], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rows in the run")
    axes.set_ylabel("% of answers")


def _goodput(axes: Axes, report: Report) -> None:
    due = np.asarray([block.due for block in report.blocks], float)
    axes.scatter(due, [block.good for block in report.blocks], color=GOOD, s=14, label="good")
    bad = [block.due - block.good for block in report.blocks]
    axes.scatter(due, bad, color=BAD, s=8, alpha=0.6, label="not")
    most = float(due.max(initial=1.0))
    axes.plot([0, most], [0, most], color=SOFT, linewidth=0.8)
    axes.set_xlabel("requests due in the second")
    axes.set_ylabel("of them")
    axes.legend(frameon=False)
