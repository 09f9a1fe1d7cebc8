"""A run, or two compared, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from loadtests.report.compare import Change, Compared
from loadtests.report.document import Held, Report, Told

COLUMNS = ("requests", "offered/s", "answers/s", "rows/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "refused", "failed")
MOST_REASONS = 5


def show(console: Console, report: Report) -> None:
    """Print a run: its figures by kind of request, its runs, its limits, and why requests failed."""
    table = Table(title=report.scenario.get("name") or None, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    if any(told.good is not None for told in (report.whole, *report.kinds)):
        table.add_column("good", justify="right")
    for told in (*report.kinds, report.whole):
        table.add_row(*_row(told))
    console.print(table)
    if report.batch_rows:
        runs = sum(report.batch_rows.values())
        mean = sum(rows * count for rows, count in report.batch_rows.items()) / runs
        console.print(
            f"runs seen by {runs:,} answers: {mean:.1f} rows in the mean, waited {ms(report.queue_p50)} (p99 {ms(report.queue_p99)}) ms, "
            f"computed {ms(report.compute_p50)} (p99 {ms(report.compute_p99)}) ms"
        )
    for limit in report.slo:
        console.print(f"[{'green' if limit.met else 'red'}]{'kept' if limit.met else 'MISSED'}[/] {limit_words(limit)}")
    for why, count in list(report.why.items())[:MOST_REASONS]:
        console.print(f"{count:,} x {why}", markup=False)
    if not report.trusted:
        console.print(
            f"[yellow]don't trust these latencies: the generator sent {ms(report.whole.lag)} ms late at p99 and took "
            f"{report.client_cpu:.0%} of a core; a lower rate, or more machine for it"
        )


def show_compared(console: Console, compared: Sequence[Compared]) -> None:
    """Print what changed between two runs."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "before", "after", "change", "99 % interval", ""):
        table.add_column(column, justify="left" if column in ("",) else "right")
    for row in compared:
        table.add_row(row.name, *_figures(row), f"[{STYLES[row.change]}]{row.change}")
    console.print(table)


STYLES = {Change.SAME: "dim", Change.BETTER: "green", Change.WORSE: "red", Change.UNSURE: "yellow"}


def _figures(row: Compared) -> tuple[str, str, str, str]:
    if row.share:
        moved = row.after - row.before
        return f"{row.before:.2%}", f"{row.after:.2%}", f"{moved:+.2%}", f"{row.low:+.2%} … {row.high:+.2%}"
    unit = ms_told if row.name.startswith("p") else _rate
    ratio = row.after / row.before if row.before else float("nan")
    return unit(row.before), unit(row.after), f"x {ratio:.3f}", f"{row.low:.3f} … {row.high:.3f}"


def ms_told(seconds: float) -> str:
    """Milliseconds with their unit."""
    return f"{ms(seconds)} ms"


def _share(value: float) -> str:
    return f"{value:.4g}" if value and value < 1e-4 else f"{value:.2%}"


def _rate(value: float) -> str:
    return f"{value:,.1f}"


def limit_words(limit: Held) -> str:
    """A limit of the scenario and what came of it, in words."""
    write = ms_told if limit.name.startswith("p") else _rate if limit.name == "rate" else _share
    word = "at least" if limit.name in ("goodput", "rate") else "at most"
    return f"{limit.name} {'-' if limit.value is None else write(limit.value)}, {word} {write(limit.limit)}"


def ms(seconds: float | None) -> str:
    """Milliseconds in three digits."""
    return "-" if seconds is None else f"{seconds * 1e3:,.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _row(told: Told) -> list[str]:
    cells = [told.name, f"{told.requests:,}", f"{told.offered:,.1f}", f"{told.answered:,.1f}", f"{told.rows:,.1f}"]
    cells += [ms(value) for value in (told.p50, told.p90, told.p99, told.p999, told.most)]
    cells += [f"{told.refused:.2%}", f"{told.failed:.2%}"]
    return cells if told.good is None else [*cells, f"{told.good:.2%}"]
