"""`tidegate doctor`: prints what this machine can serve, and exits 0 when a model runs on its CPU or GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.commands.machine import Report, examine

STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "failure": "red"}

app = typer.Typer(help="Say what this machine can serve, and what is in the way.", add_completion=False)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what this machine can serve: software, limits, onnxruntime, GPUs. Exits 1 when it can serve on neither CPU nor GPU."""
    report = examine()
    if as_json:
        sys.stdout.write(as_text(report))
    else:
        show(report, Console())
    raise typer.Exit(0 if report.cpu or report.gpu else 1)


def as_text(report: Report) -> str:
    """The report as JSON."""
    body = {"serves": {"cpu": report.cpu, "gpu": report.gpu}, "checks": [asdict(finding) for finding in report.findings]}
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def show(report: Report, console: Console) -> None:
    """The report as a table, and the verdict below it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for heading in ("state", "name", "seen"):
        table.add_column(heading, no_wrap=heading != "seen", overflow="fold")
    area = ""
    for finding in report.findings:
        if finding.area != area:
            table.add_row(Text(finding.area, "bold"))
            area = finding.area
        seen = Text(finding.seen)
        if finding.advice:
            seen.append(f"\n→ {finding.advice}", STYLES["warning"] if finding.state != "note" else STYLES["note"])
        table.add_row(Text(f"  {finding.state}", STYLES[finding.state]), Text(finding.name), seen)
    console.print(table)
    console.print(Text(verdict(report), "bold"), soft_wrap=True)


def verdict(report: Report) -> str:
    devices = " and ".join(name for name, works in (("the CPU", report.cpu), ("a GPU", report.gpu)) if works)
    if devices:
        return f"This machine serves models on {devices}."
    return "This machine can't serve models yet; what to do stands beside each failure (→)."
