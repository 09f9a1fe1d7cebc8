"""One trial while it has its model's requests: who counts them, and what says that it can't go on. In the event loop."""

from __future__ import annotations

from time import monotonic, time

from server.control.routing.trial import Trial
from server.errors import TidegateError
from server.messages import InferRequest, InferResponse
from server.router.canary import Verdict
from server.router.evidence import Arm, Evidence, Sums
from server.router.experiment import EXPOSURES, Report
from server.router.live.exposures import Exposures
from server.router.live.exposures import Report as Reported
from server.router.live.shadow import Shadow
from server.router.live.tally import Scope, Tally, finite
from server.router.rules import split
from server.router.table import ServedVersion, ServingTable, State
from server.router.traffic import Traffic


class Clock:
    """Seconds since 1970 that never jump: the machine's clock as it was when this was made, and what has passed since."""

    def __init__(self) -> None:
        self._offset = time() - monotonic()

    def __call__(self) -> float:
        return self._offset + monotonic()


class Running:
    """`evidence` is what was gathered of all, `verdict` (of a canary) or `report` (of an A/B test) what was last concluded from it."""

    def __init__(self, trial: Trial, table: ServingTable) -> None:
        self.trial = trial
        self.exposures = Exposures()
        self.evidence = Evidence()
        self.verdict: Verdict | None = None
        self.report: Report | None = None
        self.not_finite = 0
        self.cut_off = False
        guarded = any(guard.metric == "agreement" for guard in trial.plan.guards)
        self.shadow = Shadow(table, trial.model, trial.canary, self._compared) if guarded else None
        self._table = table
        self._tallies: list[Tally] = []
        self._told: list[tuple[str, float, Arm, float]] = []  # outcomes that were reported since the last look
        self._served: dict[str, ServedVersion] = {}
        self._restarts = self._count()
        self._replaying = False
        self._ended = dict.fromkeys(Arm, 0)  # requests of tallies that are no more

    def traffic(self) -> Traffic:
        """What shares the model's requests out as the trial stands now."""
        trial = self.trial
        rules = split(trial.model, trial.weights, trial.id)
        self._tallies.append(Tally(Scope(trial.canary, trial.share, trial.objective), self.exposures, self._suspect))
        return Traffic(rules, trial.sticky, self._tallies[-1], self.shadow)

    def baseline_only(self) -> Traffic:
        """What does while it isn't known how the trial stands."""
        return Traffic(split(self.trial.model, {self.trial.baseline: 100.0}), self.trial.sticky)

    def requests(self, arm: Arm) -> int:
        """Requests of an arm that were answered here since the trial was taken up. Any thread."""
        return self._ended[arm] + sum(tally.arms[arm].requests for tally in self._tallies.copy())

    def take(self, now: float) -> Evidence:
        """What was counted here since the last time."""
        seen = Evidence()
        for tally in list(self._tallies):
            for metric, arm, sums in tally.take():
                seen.count(metric, tally.scope.stratum, arm, sums, now)
            if tally is not self._tallies[-1] and not tally.open:
                self._tallies.remove(tally)
                for arm, counts in tally.arms.items():
                    self._ended[arm] += counts.requests
        told, self._told = self._told, []
        for metric, value, arm, stratum in told:
            seen.count(metric, stratum, arm, Sums.of((value,)), now)
        return seen

    def tell(self, metric: str, value: float, *, request_id: str = "", key: str = "") -> Reported:
        """An outcome of a request, or of whoever has a sticky key: 0 … 1."""
        reported, exposure = self.exposures.report(metric, request_id=request_id, key=key)
        if reported is Reported.COUNTED and exposure is not None:
            self._told.append((metric, value, exposure.arm, exposure.stratum))
        return reported

    def fault(self) -> str:
        """Why the trial can't go on, "" where it can: both versions must be there, and be what they were."""
        for version, what in ((self.trial.canary, "the canary"), (self.trial.baseline, "the baseline")):
            served = self._table.version(self.trial.model, version)
            if served is not None and served.state is State.LOADING:
                continue
            if served is None or served.serving is None:
                return f"{what}, version {version}, doesn't serve any more" + (f": {served.reason}" if served is not None else "")
            if self._served.setdefault(version, served) is not served:
                return f"{what}, version {version}, was loaded anew: what was seen of it says nothing of what it is now"
        return ""

    @property
    def crashes(self) -> int:
        """How often one of the canary's processes was lost since the trial was taken up."""
        return max(0, self._count() - self._restarts)

    def _count(self) -> int:
        served = self._table.version(self.trial.model, self.trial.canary)
        return sum(served.engine.supervisor.restarts.values()) if served is not None and served.engine is not None else 0

    def _compared(self, differs: bool) -> None:
        self._tallies[-1].told(differs)

    def _suspect(self, request: InferRequest, response: InferResponse) -> None:
        """An answer of the canary isn't finite: it's the canary's doing only where the request is, and the baseline's answer to it."""
        served = self._table.version(self.trial.model, self.trial.baseline)
        front = None if served is None else served.serving
        if front is None or self._replaying or not finite(request.inputs):
            return

        def answered(again: InferResponse, final: bool) -> None:
            self._replaying = False
            if again.error is None and finite(again.outputs):
                self.not_finite += 1

        copy = InferRequest(request.model, dict(request.inputs), request.layout, self.trial.baseline, outputs=request.outputs)
        copy.received = monotonic()
        self._replaying = True
        try:
            front.submit(copy, answered)
        except TidegateError:
            self._replaying = False  # the next one will tell


def exposures_of(evidence: Evidence) -> dict[str, int]:
    """Requests by arm that chance gave to it, as far as gathered."""
    return {arm.value: evidence.total(EXPOSURES, arm).n for arm in Arm}
