"""How a trial is shown: to clients of the admin API, and in one line to whoever reads the log of events. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from server.control.routing.running import Running, exposures_of
from server.control.routing.trial import Kind, Trial
from server.router.canary import Verdict
from server.router.evidence import Evidence, Sums, as_rows
from server.router.experiment import METRICS, Estimate, Report
from server.router.live.tally import TRUNCATED

SHOWN_DIGITS = 6


def shown(trial: Trial, running: Running | None, now: float) -> dict[str, Any]:
    """A trial, as GET shows it."""
    plan = trial.plan
    arms = {"baseline": trial.baseline, "canary": trial.canary}
    progress: dict[str, Any] = {"share": trial.share if trial.going else None}
    if trial.kind is Kind.CANARY:
        progress |= {"step": trial.step + 1, "steps": list(plan.steps), "min_samples": plan.min_samples, "min_seconds": plan.min_seconds}
    ages = {"began": trial.began, "seconds": _digits((now if trial.going else trial.ended) - trial.began)}
    if trial.going:
        ages["step_seconds"] = _digits(now - trial.since)
    return {
        "id": trial.id,
        "kind": trial.kind.value,
        "model": trial.model,
        **arms,
        "state": trial.state.value,
        "why": trial.why,
        "who": trial.who,
        **progress,
        **ages,
        "alpha": plan.alpha,
        "guards": {guard.metric: guard.margin for guard in plan.guards},
        "objective_s": trial.objective or None,
        "sticky": None if trial.sticky is None else str(trial.sticky),
        **({} if running is None or running.shadow is None else {"shadow": dict(running.shadow.results)}),
        **({} if running is None else {"crashes": running.crashes, "not_finite": running.not_finite, "cut_off": running.cut_off}),
        **(trial.said if running is None else said_of(running, trial)),
    }


def said_of(running: Running, trial: Trial) -> dict[str, Any]:
    """What was last concluded, with figures."""
    exposures = exposures_of(running.evidence)
    if running.report is not None:
        return of_report(running.report, trial)
    verdict = running.verdict
    return {"exposures": exposures} if verdict is None else {**of_verdict(verdict, trial), "exposures": exposures}


def of_verdict(verdict: Verdict, trial: Trial) -> dict[str, Any]:
    """A canary's verdict, as it's shown and kept."""
    alpha = trial.plan.alpha / len(trial.plan.guards)
    return {
        "verdict": {"action": verdict.action.value, "reason": verdict.reason.value, "guard": verdict.guard},
        "metrics": {one.metric: _estimate(one, trial, alpha) for one in verdict.estimates},
    }


def of_report(report: Report, trial: Trial) -> dict[str, Any]:
    """What an A/B test says, as it's shown and kept."""
    alpha = trial.plan.alpha / len(trial.plan.guards)
    findings = {metric: finding.value for metric, finding in report.findings.items()}
    metrics = {one.metric: {**_estimate(one, trial, alpha), "finding": findings[one.metric]} for one in report.estimates}
    return {
        "verdict": _overall(findings, report.mismatch),
        "metrics": metrics,
        "exposures": dict(report.exposures),
        "sample_ratio_mismatch": report.mismatch is not None,
    }


def _overall(findings: Mapping[str, str], mismatch: float | None) -> str:
    """One word for an A/B test: exposures that don't fit the share make all else unbelievable."""
    if mismatch is not None:
        return "sample_ratio_mismatch"
    decided = set(findings.values()) - {"undecided"}
    return decided.pop() if len(decided) == 1 else "mixed" if decided else "undecided"


def _estimate(one: Estimate, trial: Trial, alpha: float) -> dict[str, Any]:
    """A metric's figures; those of latency in seconds."""
    scale = scale_of(one.metric, trial)
    return {
        "baseline": _arm(one.baseline, scale),
        "canary": _arm(one.canary, scale),
        "worse": _digits(one.worse, scale),
        "low": _digits(one.low, scale),
        "high": _digits(one.high, scale),
        "evidence_of_harm": _digits(one.harm),
        "harm_at": _digits(-math.log(alpha)),
        "evidence_of_no_harm": _digits(one.proof),
        "proven_at": _digits(-math.log(trial.plan.alpha)),
        "design_effect": _digits(one.design_effect),
    }


def _arm(sums: Sums, scale: float) -> dict[str, Any]:
    return {"n": sums.n, "mean": _digits(sums.mean, scale)}


def _digits(value: float | None, scale: float = 1.0) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value * scale:.{SHOWN_DIGITS}g}")


def in_words(trial: Trial, verdict: Verdict) -> str:
    """Why, with the figures of the guard that decided, or of all."""
    deciding = [one for one in verdict.estimates if one.metric == verdict.guard] or verdict.estimates
    return "; ".join((verdict.reason.value.replace("_", " "), *(_words(one, trial) for one in deciding)))


def _words(one: Estimate, trial: Trial) -> str:
    """errors: baseline 1.02 % of 1960, canary 9.8 % of 102, worse by 8.78 % (3.1 to 14.5 %)."""
    event = METRICS[one.metric].event
    scale, unit = (100.0, "%") if event else (TRUNCATED * trial.objective * 1e3, "ms") if one.metric == "latency" else (1.0, "")
    arms = (("baseline", one.baseline), ("canary", one.canary))
    of = ", ".join(f"{arm} {sums.mean * scale:.3g} {unit}".strip() + f" of {sums.n}" for arm, sums in arms)
    if one.worse is None or one.low is None or one.high is None:
        return f"{one.metric}: {of}"
    worse, low, high = (f"{value * scale:.3g}" for value in (one.worse, one.low, one.high))
    return f"{one.metric}: {of}, worse by {worse} ({low} to {high}) {unit}".strip()


def scale_of(metric: str, trial: Trial) -> float:
    """What a metric's values, 0 to 1, are multiplied by to be shown: latency is then in seconds."""
    return TRUNCATED * trial.objective if metric == "latency" else 1.0


def log_of(trial: Trial, evidence: Evidence) -> list[dict[str, Any]]:
    """A trial and all evidence, as lines for a file: `tidegate experiment analyse` reads them."""
    plan = trial.plan
    head = {
        "event": "experiment",
        "id": trial.id,
        "kind": trial.kind.value,
        "model": trial.model,
        "baseline": trial.baseline,
        "canary": trial.canary,
        "alpha": plan.alpha,
        "guards": {guard.metric: guard.margin for guard in plan.guards},
        "objective_s": trial.objective or None,
        "width": evidence.width,
    }
    names = ("metric", "stratum", "block", "arm", "n", "total", "squares")
    return [head, *({"event": "evidence", **dict(zip(names, row, strict=True))} for row in as_rows(evidence))]
