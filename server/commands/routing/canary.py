"""`tidegate canary`: roll a model's version out on live requests; the server judges it, and takes it back or gives it everything."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from server.commands.routing.printing import LOCAL, Json, Model, TokenFile, Url, ask, show

app = typer.Typer(help="Roll a model's version out on live requests.", add_completion=False, no_args_is_help=True)


@app.callback()
def canary() -> None:
    """Roll a model's version out on live requests."""


@app.command()
def start(
    model: Model,
    version: Annotated[str, typer.Argument(help="The version to roll out; it's loaded if it isn't.")],
    baseline: Annotated[str, typer.Option(help="The version it's compared with; default: the one that answers now.")] = "",
    steps: Annotated[str, typer.Option(help="Its shares in percent, rising, the last 100; default 1,5,25,50,100.")] = "",
    guard: Annotated[
        list[str] | None,
        typer.Option(help="METRIC or METRIC=MARGIN: errors, latency, slow, outcome, rating; default errors and latency."),
    ] = None,
    objective: Annotated[str, typer.Option(help="What counts as slow, such as 50ms; default: batching.latency_objective.")] = "",
    min_samples: Annotated[int | None, typer.Option(help="Requests of each step; default 100.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Seconds of each step; default 60.")] = None,
    alpha: Annotated[float | None, typer.Option(help="How often a good one may be rolled back by chance; default 0.05.")] = None,
    sticky: Annotated[str, typer.Option(help="header:NAME, parameter:NAME or id; default: as model.yaml says.")] = "",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Begin. The same again is the one that goes on."""
    said: dict[str, Any] = {"baseline": baseline, "objective": objective, "sticky": sticky}
    said |= {"steps": percents(steps), "guards": [margin(one, "--guard") for one in guard] if guard else None}
    said |= {"min_samples": min_samples, "min_seconds": min_seconds, "alpha": alpha}
    wish = {"version": version, **{word: value for word, value in said.items() if value not in ("", None)}}
    show(ask("POST", _path(model), url, token_file, wish), url, json=json)


@app.command()
def status(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """How far it is, and what is known of it."""
    show(ask("GET", _path(model), url, token_file), url, json=json)


@app.command()
def pause(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Hold it at its step; harm still rolls it back."""
    show(ask("POST", f"{_path(model)}/pause", url, token_file), url, json=json)


@app.command()
def resume(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Let it go on."""
    show(ask("POST", f"{_path(model)}/resume", url, token_file), url, json=json)


@app.command()
def promote(
    model: Model,
    full: Annotated[bool, typer.Option(help="To all traffic at once.")] = False,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Go on to the next step, whatever the evidence."""
    show(ask("POST", f"{_path(model)}/promote", url, token_file, {"full": full}), url, json=json)


@app.command()
def abort(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Give all requests back to the baseline."""
    show(ask("DELETE", _path(model), url, token_file), url, json=json)


def percents(text: str) -> list[float] | None:
    """1,5,25 as numbers."""
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise typer.BadParameter(f"--steps: expected percentages such as 1,5,25,50,100, got {text!r}") from None


def margin(text: str, option: str) -> dict[str, Any]:
    """METRIC or METRIC=MARGIN."""
    metric, equals, number = text.partition("=")
    try:
        return {"metric": metric, "margin": float(number)} if equals else {"metric": metric}
    except ValueError:
        raise typer.BadParameter(f"{option}: expected METRIC=MARGIN such as errors=0.01, got {text!r}") from None


def _path(model: str) -> str:
    return f"/admin/models/{quote(model, safe='')}/canary"
