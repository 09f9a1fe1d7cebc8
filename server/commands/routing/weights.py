"""`tidegate weights`: how a running server shares a model's requests out among its versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.commands.routing.printing import LOCAL, Json, Model, TokenFile, Url, ask
from server.errors import TidegateError

app = typer.Typer(help="Show and set how a model's requests are shared out among its versions.", add_completion=False, no_args_is_help=True)


@app.callback()
def weights() -> None:
    """Show and set how a model's requests are shared out among its versions."""


@app.command()
def show(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """How a model's requests are shared out, and by whose word."""
    _ask("GET", model, url, token_file, json)


@app.command("set")
def set_(
    model: Model,
    shares: Annotated[list[str], typer.Argument(help="VERSION=PERCENT for each version: 1=95 2=5. They add up to 100.")],
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Share a model's requests out, over its model.yaml until it's cleared. Versions that aren't loaded are, first."""
    _ask("PUT", model, url, token_file, json, wish={"weights": dict(map(_share, shares))})


@app.command()
def clear(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Go back to the weights of the model's own configuration."""
    _ask("DELETE", model, url, token_file, json)


def _share(text: str) -> tuple[str, float]:
    version, equals, percent = text.partition("=")
    try:
        if equals and version:
            return version, float(percent.removesuffix("%"))
    except ValueError:
        pass
    raise typer.BadParameter(f"expected VERSION=PERCENT such as 1=95, got {text!r}")


def _ask(method: str, model: str, url: str, token_file: Path | None, json: bool, wish: dict[str, Any] | None = None) -> None:
    body = ask(method, f"/admin/models/{quote(model, safe='')}/weights", url, token_file, wish)
    if json:
        typer.echo(body.decode())
    else:
        _print(url, body)


def _print(url: str, body: bytes) -> None:
    try:
        said = orjson.loads(body)
        weights, by, ready, sticky = said["weights"], said["by"], said["ready"], said["sticky"]
        declared, chosen = said["declared"], said["chosen"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error
    table = Table("version", "percent", "ready")
    for version, percent in weights.items():
        table.add_row(version, f"{percent:g}", "yes" if version in ready else "no")
    console = Console()
    console.print(table)
    console.print(f"by {by}" + (f", by key: {sticky}" if sticky else ""))
    if chosen is not None and declared is not None and chosen != declared:
        console.print(f"model.yaml says {', '.join(f'{version}: {percent:g} %' for version, percent in declared.items())}")
