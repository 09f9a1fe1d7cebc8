"""`tidegate experiment`: compare two versions of a model on live requests, and analyse again what was seen, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from server.commands.routing.canary import margin
from server.commands.routing.printing import LOCAL, Json, Model, TokenFile, Url, ask, print_trial, show
from server.control.routing.trial import Kind, Trial
from server.control.routing.views import of_report
from server.errors import ConfigError, TidegateError
from server.router.canary import Plan
from server.router.evidence import Arm, Cell, Evidence, Sums
from server.router.experiment import Guard, analyse

app = typer.Typer(help="Compare two versions of a model on live requests (an A/B test).", add_completion=False, no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The experiment's id, as `start` gives it; or the model's name.")]


@app.callback()
def experiment() -> None:
    """Compare two versions of a model on live requests (an A/B test)."""


@app.command()
def start(
    model: Model,
    version: Annotated[str, typer.Argument(help="The second arm; it's loaded if it isn't.")],
    baseline: Annotated[str, typer.Option(help="The first arm; default: the version that answers now.")] = "",
    share: Annotated[float, typer.Option(help="Percent of the requests that the second arm gets.")] = 50.0,
    metric: Annotated[list[str] | None, typer.Option(help="errors, latency, slow, outcome, rating; default errors, latency.")] = None,
    objective: Annotated[str, typer.Option(help="What counts as slow, such as 50ms; default: batching.latency_objective.")] = "",
    alpha: Annotated[float, typer.Option(help="How often chance may pass for a difference.")] = 0.05,
    sticky: Annotated[str, typer.Option(help="header:NAME, parameter:NAME or id; default: as model.yaml says.")] = "",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Begin. Nothing is done about what is found."""
    metrics = [margin(one, "--metric") for one in metric] if metric else None
    said: dict[str, Any] = {"baseline": baseline, "objective": objective, "sticky": sticky, "metrics": metrics}
    wish = {"version": version, "share": share, "alpha": alpha, **{word: value for word, value in said.items() if value not in ("", None)}}
    show(ask("POST", _path(model), url, token_file, wish), url, json=json)


@app.command("show")
def show_(experiment: Id, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """Arms, exposures, estimates with bounds that hold at all times, and the verdict; of a canary too, by its id."""
    try:
        body = ask("GET", f"/admin/experiments/{quote(experiment, safe='')}", url, token_file)
    except TidegateError as unknown:
        if "status 404" not in str(unknown):
            raise
        body = ask("GET", _path(experiment), url, token_file)
    show(body, url, json=json)


@app.command()
def stop(model: Model, url: Url = LOCAL, token_file: TokenFile = None, json: Json = False) -> None:
    """End it: the baseline answers everything."""
    show(ask("DELETE", _path(model), url, token_file), url, json=json)


@app.command()
def log(experiment: Id, url: Url = LOCAL, token_file: TokenFile = None) -> None:
    """All evidence of one that goes on, as JSON lines."""
    typer.echo(ask("GET", f"/admin/experiments/{quote(experiment, safe='')}/log", url, token_file).decode(), nl=False)


@app.command("analyse")
def analyse_(
    file: Annotated[Path, typer.Argument(help="What `tidegate experiment log` wrote.")],
    metric: Annotated[list[str] | None, typer.Option(help="METRIC or METRIC=MARGIN in place of the experiment's own.")] = None,
    alpha: Annotated[float | None, typer.Option(help="In place of the experiment's own.")] = None,
    json: Json = False,
) -> None:
    """Analyse a log again, without a server."""
    trial, evidence = read_log(file, [margin(one, "--metric") for one in metric or []], alpha)
    said = of_report(analyse(trial.plan.guards, evidence, trial.plan.alpha), trial)
    head = {"id": trial.id, "kind": trial.kind.value, "model": trial.model, "baseline": trial.baseline, "canary": trial.canary}
    whole = {**head, "guards": {guard.metric: guard.margin for guard in trial.plan.guards}, "state": "logged", "seconds": 0.0, **said}
    if json:
        typer.echo(orjson.dumps(whole).decode())
    else:
        print_trial({**whole, "state": "analysed again", "seconds": evidence_seconds(evidence)})


def read_log(file: Path, metrics: list[dict[str, Any]], alpha: float | None) -> tuple[Trial, Evidence]:
    """A log's experiment and evidence. Raises TidegateError with the line that can't be read."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise TidegateError(f"{file}: can't be read: {error.strerror}") from error
    cells: dict[Cell, Sums] = {}
    head: Mapping[str, Any] = {}
    trial: Trial | None = None
    for number, line in enumerate(lines, 1):
        try:
            said = orjson.loads(line)
            if trial is None:
                head, trial = said, _trial(said, metrics, alpha)
            else:
                cell = Cell(str(said["metric"]), float(said["stratum"]), int(said["block"]), Arm(said["arm"]))
                cells[cell] = Sums(int(said["n"]), int(said["total"]), int(said["squares"]))
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise TidegateError(f"{file}:{number}: not a log of `tidegate experiment log`: {error}") from error
    if trial is None:
        raise TidegateError(f"{file}: empty; `tidegate experiment log ID` writes it")
    return trial, Evidence(cells, int(head["width"]))


def _trial(head: Mapping[str, Any], metrics: list[dict[str, Any]], alpha: float | None) -> Trial:
    own = {str(metric): float(margin) for metric, margin in head["guards"].items()}
    wanted = {one["metric"]: one.get("margin", own.get(one["metric"], 0.01)) for one in metrics} or own
    guards = tuple(Guard(metric, margin) for metric, margin in wanted.items())
    plan = Plan(str(head["model"]), guards, alpha=float(head["alpha"] if alpha is None else alpha))
    return Trial(str(head["id"]), Kind(head["kind"]), plan, str(head["baseline"]), str(head["canary"]), float(head["objective_s"] or 0))


def evidence_seconds(evidence: Evidence) -> float:
    """From the first block to the last."""
    blocks = [cell.block for cell in evidence.cells]
    return float((max(blocks) - min(blocks) + 1) * evidence.width) if blocks else 0.0


def _path(model: str) -> str:
    return f"/admin/models/{quote(model, safe='')}/experiment"
