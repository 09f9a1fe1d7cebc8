"""`tidegate monitor`: watch servers and GPUs and raise alerts, from one YAML file."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from monitor.app import Monitor
from monitor.metrics.query import promql, promql_duration
from monitor.render.helm import chart_files, rendered
from monitor.rule_test import run_tests
from monitor.rules.build import read_rules, rules_schema
from monitor.rules.model import Ruleset
from monitor.top import show
from server.errors import ConfigError

app = typer.Typer(help="Watch servers and GPUs, and raise alerts, from one YAML file.", add_completion=False, no_args_is_help=True)

RulesPath = Annotated[Path, typer.Argument(metavar="FILE", help="The rules file; see docs/monitor.md.")]


@app.callback()
def monitor() -> None:
    """Watch a server's metrics and raise alerts, from one YAML file."""


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The rules file.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every rule with its PromQL.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON Schema, for editors.")] = False,
) -> None:
    """Read a rules file and say what is wrong with it, or what it watches. Exits 1 when it can't be used."""
    if schema:
        typer.echo(json.dumps(rules_schema(), indent=2, ensure_ascii=False))
        return
    if file is None:
        raise typer.BadParameter("a rules file must be named: tidegate monitor check FILE")
    ruleset = _read(file)
    for rule in ruleset.rules if verbose else ():
        hold = f" for {promql_duration(rule.hold)}" if rule.hold else ""
        typer.echo(f"{rule.where or '-'}: {rule.level} {rule.alert}: {promql(rule.condition)}{hold}")
    for note in ruleset.notes:
        typer.echo(f"note: {note}", err=True)
    own = sum(rule.where.startswith(f"{file}:") for rule in ruleset.rules)
    typer.echo(f"{file}: {own} alerts, and {len(ruleset.rules) - own} of tidegate's own")


@app.command()
def run(
    file: RulesPath,
    once: Annotated[bool, typer.Option("--once", help="Look twice, an interval apart, tell, and exit: for cron and CI.")] = False,
) -> None:
    """Watch until stopped. SIGHUP, or a change of the file, reads it again.

    With --once the exit code says what fires: 0 nothing, 3 a WARNING, 4 a CRITICAL, 5 nothing but a target that didn't answer.
    """
    _read(file)
    raise typer.Exit(asyncio.run(_run(Monitor(file, _say), once=once)))


async def _run(watching: Monitor, *, once: bool) -> int:
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number, event in ((signal.SIGINT, stop), (signal.SIGTERM, stop), (signal.SIGHUP, reload)):
        loop.add_signal_handler(number, event.set)
    await watching.start()
    try:
        if once:
            return await watching.once()
        targets = watching.ruleset.settings.sources
        watched = targets.prometheus or ", ".join(targets.targets)
        _say(f"{len(watching.ruleset.rules)} rules; watching {watched}")
        await watching.run(stop, reload)
    finally:
        await watching.stop()
    return 0


@app.command()
def test(file: Annotated[Path, typer.Argument(metavar="FILE", help="Rule tests: series in, alerts out.")]) -> None:
    """Run unit tests of rules: series go in, the alerts that must be firing come out. Exits 1 when one fails."""
    results = run_tests(file)
    for result in results:
        typer.echo(f"{'FAIL' if result.failures else 'ok  '} {result.name}")
        for failure in result.failures:
            typer.echo(f"     {failure}")
    failed = sum(bool(result.failures) for result in results)
    typer.echo(f"{len(results) - failed} passed, {failed} failed")
    raise typer.Exit(1 if failed else 0)


@app.command()
def render(
    file: RulesPath,
    form: Annotated[Literal["prometheus", "alertmanager", "grafana", "helm"], typer.Option("--to", help="For whom.")] = "prometheus",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, a folder for grafana and helm; else stdout.")
    ] = None,
) -> None:
    """Write the same rules for Prometheus, Alertmanager or Grafana (four dashboards), or all of it for the Helm chart."""
    ruleset = _read(file)
    files = chart_files(ruleset) if form == "helm" else rendered(ruleset, form)
    if len(files) > 1:
        if output is None:
            raise typer.BadParameter(f"--to {form} writes {len(files)} files: name their folder with --output")
        for name, text in files.items():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text)
        return
    (text,) = files.values()
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)


@app.command()
def top(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Rules file whose targets and alerts are shown.")] = None,
    target: Annotated[str, typer.Option(help="A server's metrics address, where no file is given.")] = "127.0.0.1:8002",
    times: Annotated[int, typer.Option(help="How many looks; 0 until stopped.", min=0)] = 0,
) -> None:
    """A live table: models with their latency, rows and queue, GPUs, and what alerts."""
    asyncio.run(show(_read(file) if file is not None else None, target, times))


def _say(text: str) -> None:
    """What a person should know, on stderr; alerts go to stdout by the log notifier."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _read(file: Path) -> Ruleset:
    """The rules of `file`; what is wrong with it goes to stderr, a line each."""
    try:
        return read_rules(file)
    except ConfigError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(1) from error
