"""`tidegate precision`: what a running server's models run in, and the switch to another precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.commands.asking import asking, read_token
from server.commands.plan.command import plan_command
from server.errors import TidegateError

SWITCH_TIMEOUT = 600.0  # seconds: a large model is loaded and warmed up meanwhile

app = typer.Typer(help="Show and switch the precision that models run in.", add_completion=False, no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="The model's name.")]
Url = Annotated[str, typer.Option(help="The server's HTTP address.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token of class control; else TIDEGATE_TOKEN, if set.")]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]
Direction = Literal["down", "up"]
LOCAL = "http://127.0.0.1:8000"


@app.callback()
def precision() -> None:
    """Show and switch the precision that models run in."""


app.command("plan")(plan_command)


@app.command()
def show(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """What a model runs in, and what it could."""
    _ask("GET", _path(model), url, token_file, json)


@app.command("set")
def set_(
    model: Model,
    active: Annotated[str, typer.Argument(help="A precision that the model has: fp32, fp16, int8, …")],
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Switch a model to a precision, over its model.yaml until it's cleared. No request sees it; returns once it answers."""
    _ask("PUT", _path(model), url, token_file, json, wish={"active": active})


@app.command()
def step(
    model: Model,
    direction: Annotated[Direction, typer.Argument(help="down to what is faster, up to what is more exact.")] = "down",
    reason: Annotated[str, typer.Option(help="Why, for the log of events.")] = "",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Step a model once, whatever its load. Under policy ladder the server steps on from there by itself."""
    wish = {"direction": direction, **({"reason": reason} if reason else {})}
    _ask("POST", f"{_path(model)}/step", url, token_file, json, wish=wish)


@app.command()
def clear(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Go back to the precision of the model's own configuration."""
    _ask("DELETE", _path(model), url, token_file, json)


@app.command()
def purge(model: Model, url: Url = LOCAL, token_file: TokenFile = None) -> None:
    """Remove the samples that the drift guard kept of a model."""
    with asking(url, "DELETE", f"{_path(model)}/worst", read_token(token_file)) as response:
        removed = orjson.loads(response.read())["removed"]
    typer.echo(f"{removed} samples removed")


@app.command()
def pin(
    model: Model,
    out: Annotated[str, typer.Argument(help="The precision that may not answer for a while.")],
    why: Annotated[str, typer.Option(help="Why; it's shown and kept.")] = "",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Pin a precision out: 5 minutes, twice as long each time. Where it answers now, another takes its place first."""
    _ask("PUT", _path(model, out), url, token_file, json, wish={"why": why} if why else {})


@app.command()
def unpin(
    model: Model,
    pinned: Annotated[str, typer.Argument(help="The precision that is pinned out.")],
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Let a precision answer again that is pinned out."""
    _ask("DELETE", _path(model, pinned), url, token_file, json)


def _path(model: str, pinned: str = "") -> str:
    path = f"/admin/models/{quote(model, safe='')}/precision"
    return f"{path}/pins/{quote(pinned, safe='')}" if pinned else path


def _ask(method: str, target: str, url: str, token_file: Path | None, json: bool, wish: dict[str, Any] | None = None) -> None:
    with asking(url, method, target, read_token(token_file), wish=wish, timeout=SWITCH_TIMEOUT) as response:
        body = response.read()
    if json:
        typer.echo(body.decode())
    else:
        _print(url, body)


def _print(url: str, body: bytes) -> None:
    try:
        said = orjson.loads(body)
        rows = [(version["version"], *_row(variant)) for version in said["versions"] for variant in version["variants"]]
        chosen, stepped, configured = said["chosen"], said["stepped"], {version["configured"] for version in said["versions"]}
        steps = None if (stepping := said.get("stepping")) is None else _stepping(stepping)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error
    table = Table("version", "precision", "state", "memory", "why")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    if steps is not None:
        console.print(steps)
        _print_next(console, stepping)
    console.print(f"chosen by an operator: {chosen}" if chosen else "as the model's own configuration says")
    if chosen and {chosen} != configured:
        console.print(f"model.yaml says {', '.join(sorted(configured))}; `tidegate precision clear` goes back to that")
    if stepped:
        console.print(f"stepped to by the server: {stepped}")


def _stepping(said: dict[str, Any]) -> Table:
    """The rungs of the ladder and what each could serve."""
    objective = said["objective_s"]
    within = f" within {objective * 1e3:g} ms" if objective else ""
    table = Table("precision", f"rows/s{within}", "used", "cost", "left out", title=f"policy {said['policy']}")
    for rung in said["rungs"]:
        most, use = rung["rows_per_s"], rung["utilization"]
        figures = ("" if most is None else f"{most:.0f}", "" if use is None else f"{use:.0%}")
        table.add_row(rung["precision"], *figures, rung["cost"], rung["left_out"] or "")
    return table


def _print_next(console: Console, said: dict[str, Any]) -> None:
    """What is asked of the model, and what would be done next."""
    console.print(f"asked for: {said['asked_rows_per_s']:.1f} rows/s, foreseen {said['foreseen_rows_per_s']:.1f}")
    if "next" in said:
        act = "steps to" if said["next"]["acts"] else "would stay at" if said["policy"] == "fixed" else "next:"
        console.print(f"{act} {said['next']['precision']} ({said['next']['reason']})")


def _row(variant: dict[str, Any]) -> tuple[str, str, str, str]:
    left = f" for {variant['pinned_for_s']:.0f} s" if "pinned_for_s" in variant else ""
    memory = f"{variant['memory_bytes'] / 2**20:.1f} MiB" if variant["memory_bytes"] else ""
    return variant["precision"], variant["state"] + left, memory, variant.get("why", "")
