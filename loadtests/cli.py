"""`tidegate loadtest`: put a server under load as a scenario says, replay what was recorded, and compare what came of two runs."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from rich.console import Console

from loadtests.clients.base import Client
from loadtests.clients.choice import client_for
from loadtests.progress import telling
from loadtests.quantities import rate_of
from loadtests.report.compare import TOLERANCE, Change, compare
from loadtests.report.document import Report, read_report, report_of
from loadtests.report.page import page
from loadtests.report.table import show, show_compared
from loadtests.running import runner
from loadtests.running.mlperf import Terms, measure
from loadtests.running.plan import Plan, plan
from loadtests.running.replay import read_lines, replayed
from loadtests.scenario import SHIPPED, Asked, Closed, Scenario, find_scenario, read_scenario
from server import units
from server.errors import ConfigError

app = typer.Typer(help="Put a server under load and report what it bears.", add_completion=False, no_args_is_help=True)

LOCAL = {"http": "http://127.0.0.1:8000", "grpc": "127.0.0.1:8001", "grpc-stream": "127.0.0.1:8001"}
WIDTH = 160  # columns, where there is no terminal
MISSED = 3
"""Exit status where a limit of the scenario, or the run before it, wasn't kept."""

Url = Annotated[str | None, typer.Option(help="The server: http://HOST:PORT, or HOST:PORT for gRPC; default this machine's.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token; else TIDEGATE_TOKEN, if set.")]
Html = Annotated[Path | None, typer.Option(help="Write the report with its plots here.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON here; - for stdout.")]
Maker = Callable[[Client], Awaitable[Plan]]


@app.callback()
def loadtest() -> None:
    """Put a server under load and report what it bears."""


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario's file, or the name of one that ships (`tidegate loadtest scenarios`).")],
    url: Url = None,
    model: Annotated[str | None, typer.Option(help="Ask this model in the place of the scenario's, where it asks one.")] = None,
    rate: Annotated[str | None, typer.Option(help="Requests a second, in the place of the scenario's, such as 200/s.")] = None,
    lasts: Annotated[str | None, typer.Option("--duration", help="How long, in the place of the scenario's, such as 30s.")] = None,
    protocol: Annotated[str | None, typer.Option(help="http, grpc or grpc-stream, in the place of the scenario's.")] = None,
    token_file: TokenFile = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Run a scenario. Prints a table; ends with status 3 where the scenario's `slo` isn't kept."""
    over: dict[str, Any] = {}
    if rate is not None:
        over["arrivals"] = {"rate": _rate(rate)}
    if lasts is not None:
        over["duration"] = _seconds("--duration", lasts)
    if protocol is not None:
        over["target"] = {"protocol": protocol}
    told = read_scenario(find_scenario(scenario), over)
    if model is not None:
        told = _with_model(told, model)
    _run(told, url, token_file, lambda client: plan(told, client), html, json)


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="A recording's folder or file, or the file of an incident.")],
    url: Url = None,
    speed: Annotated[float, typer.Option(min=0.01, max=1000.0, help="How many times as fast as it came.")] = 1.0,
    only: Annotated[str, typer.Option(help="The arrivals of this model alone.")] = "",
    scenario: Annotated[str, typer.Option(help="A scenario whose target, values and limits hold.")] = "",
    token_file: TokenFile = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Ask as a recorded trace was asked: the same times, models, rows, lengths, priorities and deadlines."""
    lines = read_lines(trace, only)
    told = read_scenario(find_scenario(scenario)) if scenario else Scenario(name=trace.name, mix=(Asked(model=lines[0].model),))
    values = {name: said for asked in told.mix for name, said in asked.values.items()}
    _run(told, url, token_file, lambda client: replayed(lines, speed, values, client, told.explain), html, json)


@app.command("compare")
def compare_(
    before: Annotated[Path, typer.Argument(help="The earlier run's JSON report.")],
    after: Annotated[Path, typer.Argument(help="The later run's.")],
    tolerance: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share that a figure may move by and count as the same.")] = TOLERANCE,
) -> None:
    """Say what got slower or worse beyond noise; ends with status 3 where anything did."""
    found = compare(read_report(before), read_report(after), tolerance)
    show_compared(_console(), found)
    if any(row.change is Change.WORSE for row in found):
        raise typer.Exit(MISSED)


@app.command("mlperf")
def mlperf_(
    scenario: Annotated[str, typer.Argument(help="A scenario whose target and mix are asked.")],
    mode: Annotated[str, typer.Option(help="server, offline or single-stream.")] = "server",
    qps: Annotated[float, typer.Option(help="Queries a second: of server mode, else what is expected.")] = 100.0,
    objective: Annotated[str, typer.Option(help="With server: time within which 99 % must be answered.")] = "100ms",
    lasts: Annotated[str, typer.Option("--duration", help="Least length of the run.")] = "60s",
    min_queries: Annotated[int, typer.Option(min=1, help="Least queries of the run.")] = 1000,
    model: Annotated[str | None, typer.Option(help="Ask this model in the place of the scenario's.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    json: Json = None,
) -> None:
    """Have MLPerf's LoadGen measure a server; ends with status 3 where it says INVALID, or requests had no answer."""
    told = read_scenario(find_scenario(scenario))
    told = told if model is None else _with_model(told, model)
    told = told.model_copy(update={"arrivals": None, "closed": Closed(), "explain": 0.0})
    terms = Terms(mode, qps, _seconds("--objective", objective), _seconds("--duration", lasts), min_queries)
    token, address = _token(token_file), url or LOCAL[told.target.protocol]
    result = measure(terms, lambda: client_for(address, told.target, token), lambda client: plan(told, client))
    _console(stderr=str(json) == "-").print(result.summary, markup=False, highlight=False)
    if json is not None:
        _write_json({**asdict(result)}, json)
    if not result.valid:
        raise typer.Exit(MISSED)


@app.command()
def scenarios() -> None:
    """List the scenarios that ship."""
    console = Console()
    for file in sorted(SHIPPED.glob("*.yaml")):
        console.print(f"[bold]{file.stem}[/]  {read_scenario(file).description}", soft_wrap=True)


def _run(scenario: Scenario, url: str | None, token_file: Path | None, make: Maker, html: Path | None, json: Path | None) -> None:
    for path in (html, json):
        if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: its folder isn't there")
    address = url or LOCAL[scenario.target.protocol]
    report = uvloop.run(_measured(scenario, address, _token(token_file), make))
    show(_console(stderr=str(json) == "-"), report)
    if html is not None:
        html.write_text(page(report), encoding="utf-8")
    if json is not None:
        _write_json(report.model_dump(mode="json"), json)
    if not report.whole.answered or not all(limit.met for limit in report.slo):
        raise typer.Exit(MISSED)


async def _measured(scenario: Scenario, address: str, token: str, make: Maker) -> Report:
    client = client_for(address, scenario.target, token)
    try:
        planned = await make(client)
        begun = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        users = scenario.closed.users if scenario.closed is not None else 1
        with telling(Console(stderr=True)) as tell:
            samples = await runner.run(planned, client, users, scenario.target.timeout, tell)
        return report_of(scenario, samples, address, begun, version("tidegate"))
    finally:
        await client.close()


def _write_json(values: dict[str, Any], path: Path) -> None:
    text = orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
    if str(path) == "-":
        typer.echo(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


def _rate(text: str) -> float:
    try:
        return rate_of(text)
    except ValueError as error:
        raise ConfigError(f"--rate: {error}") from error


def _seconds(option: str, text: str) -> float:
    try:
        return units.duration(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _console(stderr: bool = False) -> Console:
    """A console that doesn't squeeze tables where there's no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def _with_model(scenario: Scenario, model: str) -> Scenario:
    if len({asked.model for asked in scenario.mix}) > 1:
        raise ConfigError(f"--model {model}: scenario {scenario.name!r} asks several models; name them in its file")
    return scenario.model_copy(update={"mix": tuple(asked.model_copy(update={"model": model}) for asked in scenario.mix)})


def _token(file: Path | None) -> str:
    if file is None:
        return os.environ.get("TIDEGATE_TOKEN", "")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}") from error
