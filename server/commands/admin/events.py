"""`tidegate events`: what was changed in a running server, by whom and why; with --follow what goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPResponse
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from server.commands.asking import asking, read_token
from server.errors import TidegateError

SILENCE = 60.0  # seconds: the server sends something every 15
DATA = b"data: "
LOCAL = "http://127.0.0.1:8000"

app = typer.Typer(help="Show what was changed in a running server, by whom and why.", add_completion=False)


@app.callback(invoke_without_command=True)
def events(
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until it's interrupted.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    url: Annotated[str, typer.Option(help="The server's HTTP address.")] = LOCAL,
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token of class debug; else TIDEGATE_TOKEN, if set.")] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Show what was changed in a running server, by whom and why."""
    target = f"/admin/events?after={after}{'&follow=true' if follow else ''}"
    with asking(url, "GET", target, read_token(token_file), timeout=SILENCE) as response:
        for event in _followed(url, response) if follow else _read(url, response):
            if model in ("", event.get("model")):
                typer.echo(orjson.dumps(event).decode() if json else _line(event))


def _read(url: str, response: HTTPResponse) -> list[dict[str, Any]]:
    try:
        return list(orjson.loads(response.read())["events"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error


def _followed(url: str, response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Each event as it comes; ends with the server."""
    try:
        for line in response:
            if line.startswith(DATA):
                yield orjson.loads(line.removeprefix(DATA))
    except (orjson.JSONDecodeError, OSError) as error:
        raise TidegateError(f"{url}: the events broke off: {error}") from error


def _line(event: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(event["at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    change = " → ".join(filter(None, (event.get("was"), event.get("now"))))
    parts = (str(event["number"]), when, event.get("who", "-"), event["what"], event.get("model", ""), change, event.get("why", ""))
    return "  ".join(part for part in parts if part)
