"""`tidegate monitor`: watch servers and GPUs and raise alerts, from one YAML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monitor.metrics.query import promql, promql_duration
from monitor.rules.build import read_rules, rules_schema
from monitor.rules.model import Ruleset
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


def _read(file: Path) -> Ruleset:
    """The rules of `file`; what is wrong with it goes to stderr, a line each."""
    try:
        return read_rules(file)
    except ConfigError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(1) from error
