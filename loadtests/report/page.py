"""A run as one HTML file: figures, limits and plots. It needs nothing else, has no scripts, and prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from loadtests.report.document import Held, Report, Told
from loadtests.report.plots import plots
from loadtests.report.table import COLUMNS, limit_words, ms

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: .2rem }
h2 { font-size: 1rem; margin: 1.6rem 0 .4rem } p { margin: .2rem 0; color: #444 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap }
th { font-weight: 500; color: #666; border-bottom: 1px solid #ccc } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.kept { color: #2e7d32 } .missed { color: #c62828; font-weight: 600 } .warn { color: #8a5a00 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 0 2rem } svg { width: 100%; height: auto }
.wide { overflow-x: auto } pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: .85rem }
"""


def page(report: Report) -> str:
    """The whole file."""
    name = escape(str(report.scenario.get("name") or "load test"))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{STYLE}</style>" + "".join(_sections(report, name)) + "</html>\n"
    )


def _sections(report: Report, name: str) -> Iterator[str]:
    yield f"<h1>{name}</h1>"
    if description := report.scenario.get("description"):
        yield f"<p>{escape(str(description))}</p>"
    yield f"<p>{escape(report.begun)}, {report.seconds:g} s, {escape(report.url)}, tidegate {escape(report.tidegate)}</p>"
    if not report.trusted:
        yield (
            f'<p class="warn">The generator fell behind (sent {ms(report.whole.lag)} ms late at p99, {report.client_cpu:.0%} of a core): '
            "these latencies aren't the server's alone.</p>"
        )
    yield _figures((*report.kinds, report.whole))
    if report.slo:
        yield "<h2>Limits</h2>" + "".join(map(_limit, report.slo))
    yield '<div class="plots">' + "".join(f"<section><h2>{escape(title)}</h2>{svg}</section>" for title, svg in plots(report)) + "</div>"
    if report.why:
        reasons = "".join(f"<tr><td>{escape(why)}</td><td>{count:,}</td></tr>" for why, count in report.why.items())
        yield f'<h2>Why requests weren\'t answered</h2><div class="wide"><table>{reasons}</table></div>'


def _figures(rows: Sequence[Told]) -> str:
    head = "<th></th>" + "".join(f"<th>{column}</th>" for column in (*COLUMNS, "good"))
    return f'<h2>Figures</h2><div class="wide"><table><tr>{head}</tr>{"".join(map(_row, rows))}</table></div>'


def _row(told: Told) -> str:
    cells = [escape(told.name), f"{told.requests:,}", f"{told.offered:,.1f}", f"{told.answered:,.1f}", f"{told.rows:,.1f}"]
    cells += [ms(value) for value in (told.p50, told.p90, told.p99, told.p999, told.most)]
    cells += [f"{told.refused:.2%}", f"{told.failed:.2%}", "-" if told.good is None else f"{told.good:.2%}"]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _limit(limit: Held) -> str:
    return f'<p class="{"kept" if limit.met else "missed"}">{escape(limit_words(limit))}: {"kept" if limit.met else "missed"}</p>'
