"""What of trials is seen in the metrics: how far they are, who answered, what each guard estimates, what was concluded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from server.control.routing.running import Running
from server.control.routing.shadows import show_shadow
from server.control.routing.trial import Kind, Trial
from server.control.routing.views import scale_of
from server.metrics.recorder import Recorder
from server.router.evidence import Arm
from server.router.experiment import Estimate

GUARD_FIGURES = ("worse", "low", "high")


class Figures:
    """`follow` is told of each change of a trial; `concluded` of each verdict."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._verdicts: dict[tuple[str, str, str], int] = {}

    def follow(self, trial: Trial, running: Running | None) -> None:
        """Show a trial that goes on; of one that's over only that none does."""
        of, gauge = {"model": trial.model}, self._recorder.gauge
        if running is None:
            gauge("tidegate_canary_step", of, lambda: 0.0)
            for name in ("tidegate_canary_share_ratio", "tidegate_experiment_cut_off"):
                self._recorder.ungauge(name, of)
            for guard in trial.plan.guards:
                for figure in GUARD_FIGURES:
                    self._recorder.ungauge(f"tidegate_guard_{figure}", {**of, "guard": guard.metric})
            return
        if trial.kind is Kind.CANARY:
            gauge("tidegate_canary_step", of, lambda: running.trial.step + 1.0)
            gauge("tidegate_canary_share_ratio", of, lambda: running.trial.share / 100)
        if running.shadow is not None:
            show_shadow(self._recorder, trial.model, running.shadow)
        gauge("tidegate_experiment_cut_off", of, lambda: float(running.cut_off))
        for arm, version in ((Arm.BASELINE, trial.baseline), (Arm.CANARY, trial.canary)):
            labels = {**of, "version": version, "arm": arm.value}
            gauge("tidegate_experiment_requests_total", labels, partial(_requests, running, arm))
        for guard in trial.plan.guards:
            for figure in GUARD_FIGURES:
                labels = {**of, "guard": guard.metric}
                gauge(f"tidegate_guard_{figure}", labels, partial(_figure, running, guard.metric, figure))

    def concluded(self, model: str, action: str, reason: str) -> None:
        """A canary was looked at."""
        key = model, action, reason
        if key not in self._verdicts:
            labels = dict(zip(("model", "action", "reason"), key, strict=True))
            self._recorder.gauge("tidegate_canary_verdicts_total", labels, self._count(key))
        self._verdicts[key] = self._verdicts.get(key, 0) + 1

    def _count(self, key: tuple[str, str, str]) -> Callable[[], float]:
        return lambda: float(self._verdicts.get(key, 0))


def _requests(running: Running, arm: Arm) -> float:
    return float(running.requests(arm))


def _figure(running: Running, metric: str, figure: str) -> float:
    """NaN while nothing can be said."""
    estimates: tuple[Estimate, ...] = ()
    if running.report is not None:
        estimates = running.report.estimates
    elif running.verdict is not None:
        estimates = running.verdict.estimates
    value = next((getattr(one, figure) for one in estimates if one.metric == metric), None)
    return math.nan if value is None else float(value) * scale_of(metric, running.trial)
