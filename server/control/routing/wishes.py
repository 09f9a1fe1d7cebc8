"""What a body asks for that begins a canary or an A/B test, checked. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import ConfigError, InvalidRequest
from server.repository.declare.routing import Sticky, read_sticky
from server.router.canary import STEPS, Plan
from server.router.experiment import Guard
from server.router.table import ServingTable
from server.units import duration
from server.validation import nearest

CANARY_WORDS = frozenset(("version", "baseline", "steps", "min_samples", "min_seconds", "alpha", "guards", "objective", "sticky"))
EXPERIMENT_WORDS = frozenset(("version", "baseline", "share", "alpha", "metrics", "objective", "sticky"))
MARGINS: Mapping[str, float] = {"errors": 0.01, "latency": 0.1, "slow": 0.05, "outcome": 0.02, "rating": 0.05}
"""Where a guard is named without one."""
NEED_OBJECTIVE = frozenset(("latency", "slow"))
MOST_STEPS = 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `baseline` and `sticky` are None where that's for the server to say; `objective` in seconds, 0 for none."""

    version: str
    baseline: str | None
    plan: Plan
    objective: float
    sticky: Sticky | None


def canary_wish(model: str, said: Mapping[str, Any], objective: float) -> Wish:
    """Of a canary; `objective` is the model's own. Raises InvalidRequest that names the word, what was expected and what was got."""
    _known(said, CANARY_WORDS)
    steps = _numbers(said, "steps", STEPS)
    return _wish(model, said, objective, steps, "guards")


def experiment_wish(model: str, said: Mapping[str, Any], objective: float) -> Wish:
    """Of an A/B test, whose second arm gets `share` percent, by default half."""
    _known(said, EXPERIMENT_WORDS)
    share = _number(said, "share", 50.0)
    if not 0 < share < 100:
        raise InvalidRequest(f"share: expected a percentage between 0 and 100, got {share:g}")
    return _wish(model, said, objective, (share, 100.0), "metrics")


def _wish(model: str, said: Mapping[str, Any], objective: float, steps: tuple[float, ...], word: str) -> Wish:
    objective = _objective(said, objective)
    guards = _guards(said.get(word), word, objective)
    least = _number(said, "min_samples", 100), _number(said, "min_seconds", 60.0)
    if int(least[0]) != least[0]:
        raise InvalidRequest(f"min_samples: expected a whole number, got {least[0]:g}")
    try:
        plan = Plan(model, guards, steps, int(least[0]), least[1], _number(said, "alpha", 0.05))
        sticky = None if said.get("sticky") is None else read_sticky(_text(said, "sticky"))
    except (ConfigError, ValueError) as error:
        raise InvalidRequest(str(error)) from error
    baseline = None if said.get("baseline") is None else _text(said, "baseline")
    return Wish(_text(said, "version"), baseline, plan, objective if NEED_OBJECTIVE & {guard.metric for guard in guards} else 0.0, sticky)


def _guards(said: object, word: str, objective: float) -> tuple[Guard, ...]:
    """`[{"metric": "errors", "margin": 0.01}]`, or only names; by default errors, and latency where there's an objective."""
    if said is None:
        said = ["errors", "latency"] if objective else ["errors"]
    if not isinstance(said, list) or not 0 < len(said) <= len(MARGINS):
        raise InvalidRequest(f'{word}: expected a list such as [{{"metric": "errors", "margin": 0.01}}], got {str(said)[:80]}')
    guards = tuple(_guard(one, word) for one in said)
    for guard in guards:
        if guard.metric in NEED_OBJECTIVE and not objective:
            raise InvalidRequest(
                f"{word}: {guard.metric!r} needs to know what is slow: give `objective` here, such as 50ms, or batching.latency_objective"
            )
    return guards


def _guard(said: object, word: str) -> Guard:
    if isinstance(said, str):
        said = {"metric": said}
    if not isinstance(said, dict) or not said.keys() <= {"metric", "margin"} or not isinstance(said.get("metric"), str):
        raise InvalidRequest(f'{word}: expected {{"metric": NAME, "margin": NUMBER}}, got {str(said)[:80]}')
    margin = said.get("margin", MARGINS.get(said["metric"], 0.01))
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise InvalidRequest(f"{word}: {said['metric'][:80]!r}: margin: expected a number, got {str(margin)[:80]!r}")
    try:
        return Guard(said["metric"], float(margin))
    except ConfigError as error:
        raise InvalidRequest(f"{word}: {error}") from error


def _objective(said: Mapping[str, Any], own: float) -> float:
    given = said.get("objective")
    if given is None:
        return own
    try:
        seconds = duration(given)
    except ValueError as error:
        raise InvalidRequest(f"objective: {error}") from error
    if not 0 < seconds <= 3600:
        raise InvalidRequest(f"objective: expected more than 0 and at most an hour, got {seconds:g} s")
    return seconds


def _known(said: Mapping[str, Any], words: frozenset[str]) -> None:
    for word in said:
        if word not in words:
            raise InvalidRequest(f"unknown word {word[:80]!r}{nearest(word, words)}; known are {', '.join(sorted(words))}")


def _number(said: Mapping[str, Any], word: str, default: float) -> float:
    value = said.get(word, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{word}: expected a number, got {str(value)[:80]!r}")
    return float(value)


def _numbers(said: Mapping[str, Any], word: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values = said.get(word, list(default))
    numbers = isinstance(values, list) and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    if not numbers or len(values) > MOST_STEPS:
        raise InvalidRequest(f"{word}: expected at most {MOST_STEPS} percentages such as [1, 5, 25, 50, 100], got {str(values)[:80]}")
    return tuple(float(one) for one in values)


def _text(said: Mapping[str, Any], word: str) -> str:
    value = said.get(word)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or len(value) > 256:
        raise InvalidRequest(f'{word}: expected text such as "2", got {str(value)[:80]!r}')
    return value


def baseline_of(model: str, canary: str, weights: Mapping[str, float] | None, table: ServingTable) -> str:
    """The version that answers now. Raises InvalidRequest where that isn't one, or is the canary itself."""
    alone = [version for version, weight in (weights or {}).items() if weight > 0]
    if len(alone) > 1:
        raise InvalidRequest(f"model '{model}' has no one baseline: versions {', '.join(alone)} have weight; name one as `baseline`")
    default = table.default(model)
    found = alone[0] if alone else default.version if default is not None else ""
    if not found or found == canary:
        raise InvalidRequest(
            f"model '{model}' has no baseline: version {canary} answers everything now; name another as `baseline`, or pin one first: "
            f"`tidegate weights set {model} VERSION=100`, or routing.weights in model.yaml"
        )
    return found


def must_compare(table: ServingTable, model: str, *versions: str) -> None:
    """Raises InvalidRequest for versions whose answers can't be compared."""
    for version in versions:
        served = table.version(model, version)
        if served is not None and (served.config.decoupled or served.config.sequence is not None):
            raise InvalidRequest(f"model '{model}' version {version} is decoupled or keeps state: its answers can't be compared one by one")
