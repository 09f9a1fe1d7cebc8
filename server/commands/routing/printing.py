"""How `tidegate canary`, `tidegate experiment` and `tidegate weights` ask a server, and how what it says of a trial is printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.commands.asking import asking, read_token
from server.errors import TidegateError

LOAD_TIMEOUT = 600.0  # seconds: versions that aren't loaded are, first
LOCAL = "http://127.0.0.1:8000"

Model = Annotated[str, typer.Argument(help="The model's name.")]
Url = Annotated[str, typer.Option(help="The server's HTTP address.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token of class control; else TIDEGATE_TOKEN, if set.")]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]


def ask(method: str, target: str, url: str, token_file: Path | None, wish: Mapping[str, Any] | None = None) -> bytes:
    """What the server answers. Raises TidegateError with what it or the network says."""
    with asking(url, method, target, read_token(token_file), wish=wish, timeout=LOAD_TIMEOUT) as response:
        return response.read()


def show(body: bytes, url: str, *, json: bool) -> None:
    """Print a trial that a server told of."""
    if json:
        typer.echo(body.decode())
        return
    try:
        print_trial(orjson.loads(body))
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error


def print_trial(said: Mapping[str, Any]) -> None:
    """What it is, how far it is, and each metric's figures."""
    console = Console()
    of = f"{said['kind']} {said['id']} of {said['model']}: version {said['canary']} against version {said['baseline']}"
    console.print(of, highlight=False)
    console.print(f"{_progress(said)}{_verdict(said)}", highlight=False)
    if said.get("why"):
        console.print(said["why"], highlight=False)
    if said.get("sample_ratio_mismatch"):
        console.print("the arms' sizes don't fit the share: nothing here can be believed before that is explained", highlight=False)
    if metrics := said.get("metrics"):
        console.print(_table(metrics, said["guards"]))


def _progress(said: Mapping[str, Any]) -> str:
    if said.get("share") is None:
        return f"{said['state'].replace('_', ' ')} after {said['seconds']:.4g} s"
    step = f", step {said['step']} of {len(said['steps'])} for {said['step_seconds']:.4g} s" if "step" in said else ""
    return f"{said['state']}: {said['share']:g} % of the requests{step}"


def _verdict(said: Mapping[str, Any]) -> str:
    verdict = said.get("verdict")
    if isinstance(verdict, Mapping):
        return f"; {verdict['action'].replace('_', ' ')}: {verdict['reason'].replace('_', ' ')} {verdict['guard']}".rstrip()
    return f"; {verdict.replace('_', ' ')}" if verdict else ""


def _table(metrics: Mapping[str, Any], guards: Mapping[str, float]) -> Table:
    table = Table("metric", "margin", "baseline", "canary", "worse by", "at all times within", "finding or evidence")
    for metric, one in metrics.items():
        arms = (f"{one[arm]['mean']:.4g} of {one[arm]['n']}" for arm in ("baseline", "canary"))
        bounds = "" if one["low"] is None else f"{one['low']:.4g} … {one['high']:.4g}"
        harm = (
            f"harm {one['evidence_of_harm']:.3g} of {one['harm_at']:.3g}, none {one['evidence_of_no_harm']:.3g} of {one['proven_at']:.3g}"
        )
        worse = "" if one["worse"] is None else f"{one['worse']:.4g}"
        table.add_row(metric, f"{guards[metric]:g}", *arms, worse, bounds, one.get("finding", harm))
    return table
