"""`tidegate admission`: which priorities a running server's model takes, and shedding the lower ones for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from server.commands.asking import asking, read_token
from server.errors import TidegateError

LOCAL = "http://127.0.0.1:8000"

app = typer.Typer(help="Show and set which priorities a model takes.", add_completion=False, no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="The model's name.")]
Url = Annotated[str, typer.Option(help="The server's HTTP address.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token of class control; else TIDEGATE_TOKEN, if set.")]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]


@app.callback()
def admission() -> None:
    """Show and set which priorities a model takes."""


@app.command()
def show(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Which priorities a model takes now."""
    _ask("GET", model, url, token_file, json)


@app.command("set")
def set_(
    model: Model,
    min_priority: Annotated[int, typer.Argument(min=1, help="The lowest priority that is still taken; 1 is the highest.")],
    ttl: Annotated[float, typer.Option(help="Seconds for which it holds.")] = 60.0,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Refuse what has a lower priority with 503, for a while."""
    _ask("PUT", model, url, token_file, json, wish={"min_priority": min_priority, "ttl_s": ttl})


@app.command()
def clear(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Take all priorities again."""
    _ask("DELETE", model, url, token_file, json)


def _ask(method: str, model: str, url: str, token_file: Path | None, json: bool, wish: dict[str, Any] | None = None) -> None:
    with asking(url, method, f"/admin/models/{quote(model, safe='')}/admission", read_token(token_file), wish=wish) as response:
        body = response.read()
    typer.echo(body.decode() if json else _told(url, body))


def _told(url: str, body: bytes) -> str:
    try:
        said = orjson.loads(body)
        least, left = said["min_priority"], said["ttl_s"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error
    return "all priorities are taken" if least is None else f"priorities 1 to {least} are taken for {left:g} s more"
