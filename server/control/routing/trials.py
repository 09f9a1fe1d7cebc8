"""Owns the canaries and A/B tests: begins them, steps, rolls back and ends them as the judge says, and writes down each change and why.

The judge is pure; this looks at what was counted a few times a second, asks it and acts. A roll-back acts first and is written down then, a
step is written down first: whatever gets lost between the two, the baseline answers. In the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from secrets import token_hex
from weakref import WeakValueDictionary

from server.control.routing.figures import Figures
from server.control.routing.following import Move, move, moves
from server.control.routing.running import Clock, Running
from server.control.routing.splits import Splits
from server.control.routing.trial import GOING, Kind, State, Trial
from server.control.routing.views import in_words, of_verdict, said_of
from server.control.routing.wishes import Wish, baseline_of, must_compare
from server.control.routing.written import Written
from server.errors import Conflict, InvalidRequest, NotFound, Superseded, Unavailable
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.router.canary import Action, Standing, Verdict, judge
from server.router.experiment import analyse
from server.router.live.fleet import Fleet
from server.router.table import ServingTable
from server.state.base import Event
from server.state.events import Events

TICK = 0.25  # seconds between two looks
SERVER = "the server"
"""Who acts where no person did."""


class Trials:
    """The last trial of each model, going on or over. `frozen` are the models whose precision must stay while one goes on;
    `restored`: what the state holds is known here."""

    def __init__(self, table: ServingTable, splits: Splits, events: Events, journal: Journal, fleet: Fleet, recorder: Recorder) -> None:
        self.frozen: set[str] = set()
        self.restored = False
        self.now = Clock()
        self._table = table
        self._splits = splits
        self._journal = journal
        self._fleet = fleet
        self._figures = Figures(recorder)
        self._trials: dict[str, Trial] = {}
        self._running: dict[str, Running] = {}
        self._written = Written(events, journal)
        self._unwritten: dict[str, Event] = {}  # ends that the state doesn't know of yet
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._emptied = False

    # From outside

    def find(self, model: str, kind: Kind) -> tuple[Trial, Running | None]:
        """A model's last canary or A/B test. Raises NotFound."""
        trial = self._trials.get(model)
        if trial is None or trial.kind is not kind:
            raise NotFound(f"model '{model[:255]}' has no {kind} here")
        return trial, self._running.get(model)

    def by_id(self, id_: str) -> tuple[Trial, Running | None]:
        """As `find`, by a trial's own id. Raises NotFound."""
        for trial in self._trials.values():
            if trial.id == id_:
                return trial, self._running.get(trial.model)
        raise NotFound(f"no experiment {id_[:80]!r} is known here")

    async def start(self, kind: Kind, wish: Wish, who: str) -> Trial:
        """Begin. The same again, while it goes on, is that one.

        Raises NotFound for an unknown model, InvalidRequest for versions that can't be compared, Conflict where another trial goes on,
        Unavailable where the state can't be written: nothing changed then."""
        model = wish.plan.model
        async with self._lock(model):
            known = self._trials.get(model)
            weights = self._splits.read(model)["weights"]
            if known is not None and known.going:
                if (known.kind, known.canary, known.plan) == (kind, wish.version, wish.plan) and wish.baseline in (None, known.baseline):
                    return known
                raise Conflict(f"model '{model}' has a {known.kind} already, {known.id} of version {known.canary}; end that first")
            baseline = wish.baseline or baseline_of(model, wish.version, self._splits.weights(model), self._table)
            if baseline == wish.version:
                raise InvalidRequest(f"model '{model}': version {baseline} can't be compared with itself")
            await self._splits.serve(model, [baseline, wish.version])
            must_compare(self._table, model, baseline, wish.version)
            if weights != {baseline: 100.0} or self._splits.weights(model) is None:
                await self._splits.keep(model, {baseline: 100.0}, who, f"the baseline of a {kind} of version {wish.version}")
            now = self.now()
            sticky = wish.sticky or self._splits.sticky(model)
            trial = Trial(token_hex(6), kind, wish.plan, baseline, wish.version, wish.objective, sticky, who=who, began=now, since=now)
            await self._fleet.begin(trial.id)
            await self._write(trial, "", f"{trial.share:g} % to version {trial.canary}", "begun through the admin API", who)
            self._take_up(trial)
            return trial

    async def hold(self, model: str, who: str, *, held: bool) -> Trial:
        """Pause a canary at its step, or let it go on. Raises NotFound, Conflict where it's over, Unavailable."""
        async with self._lock(model):
            trial = self._going(model, Kind.CANARY)
            state = State.PAUSED if held else State.RUNNING
            if trial.state is not state:
                await self._change(replace(trial, state=state), state.value, "asked for through the admin API", who)
            return self._trials[model]

    async def promote(self, model: str, who: str, *, full: bool) -> Trial:
        """Go on to a canary's next step, or to all traffic, whatever the evidence. Raises NotFound, Conflict, Unavailable."""
        async with self._lock(model):
            trial = self._going(model, Kind.CANARY)
            await self._promote(trial, "asked for through the admin API", who, full=full)
            return self._trials[model]

    async def end(self, model: str, kind: Kind, who: str, why: str = "asked for through the admin API") -> Trial:
        """Give all requests back to the baseline. What is over already stays as it ended. Raises NotFound."""
        async with self._lock(model):
            trial, _ = self.find(model, kind)
            if trial.going:
                await self._end(trial, State.ABORTED if kind is Kind.CANARY else State.STOPPED, why, who)
            return self._trials[model]

    # The owner's own

    async def restore(self) -> None:
        """Take up what the state holds, before models are loaded. What makes no sense there is told of, and the baseline answers.
        Raises Unavailable."""
        for model, trial in (await self._written.read()).items():
            self._trials[model] = trial
            if trial.going:
                self._take_up(trial)
        self.restored = True

    def begin(self) -> None:
        """Look from now on, and hear of what others do: models are loaded."""
        self._fleet.on_change = self._hear
        self._hear(emptied=False)
        self._tasks = [asyncio.ensure_future(self._run()), asyncio.ensure_future(self._follow())]
        for task in self._tasks:
            task.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """Nobody judges any more: then nothing but the baseline may answer."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._journal.lifecycle("experiments_stopped", level="error", reason=f"{type(error).__name__}: {error}")
            for running in self._running.values():
                self._splits.under(running.trial.model, running.baseline_only())

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(TICK)
            for model in list(self._running):
                async with self._lock(model):
                    if (running := self._running.get(model)) is not None:
                        await self._try(running)
            for model in list(self._unwritten):
                async with self._lock(model):
                    await self._write_end(model)
            if not self._running and not self._unwritten:
                self._some.clear()

    def _hear(self, emptied: bool) -> None:
        self._emptied |= emptied
        self._news.set()

    async def _follow(self) -> None:
        """Do as the others of the fleet, each time that there are news. Where the state isn't reached there will be, once it is."""
        while True:
            await self._news.wait()
            self._news.clear()
            emptied, self._emptied = self._emptied, False
            try:
                await self._splits.follow(emptied=emptied)
                for model in moves(self._trials, await self._written.read(), emptied=emptied):
                    async with self._lock(model):
                        await self._follow_one(model, emptied=emptied)
                self.restored = True
            except Unavailable as error:
                self._emptied |= emptied
                self._journal.lifecycle("experiments_not_read", level="warning", reason=str(error))

    async def _follow_one(self, model: str, *, emptied: bool) -> None:
        ours, theirs = self._trials.get(model), (await self._written.read()).get(model)
        what = move(ours, theirs, emptied=emptied)
        if what is Move.ABORT and (lost := ours if ours is not None and ours.going else theirs) is not None:
            await self._end(lost, State.ABORTED, "the state has lost it: the baseline answers", SERVER)
        elif what is Move.STEP and theirs is not None:
            self._stand(theirs)
        elif theirs is not None and what in (Move.BEGIN, Move.END):
            self._drop(theirs)
            if what is Move.BEGIN:
                await self._join(theirs)

    async def _ended_elsewhere(self, trial: Trial) -> bool:
        """Whether others know how a trial ended whose evidence is gone: then it's the same here."""
        try:
            theirs = (await self._written.read()).get(trial.model)
            if theirs is not None and not theirs.going:
                await self._follow_one(trial.model, emptied=False)
        except Unavailable:
            return True  # to be looked at again
        return not self._trials[trial.model].going

    async def _join(self, trial: Trial) -> None:
        try:
            await self._splits.serve(trial.model, [trial.baseline, trial.canary])
            self._take_up(trial)
        except InvalidRequest as error:  # the others go on without this server, which goes by the weights
            self._journal.lifecycle("experiment_not_joined", level="error", model=trial.model, id=trial.id, reason=str(error))

    def _drop(self, over: Trial) -> None:
        """A model has no trial that goes on any more; the last one is this."""
        self._running.pop(over.model, None)
        self._trials[over.model] = over
        self._unwritten.pop(over.model, None)
        self._splits.under(over.model, None)
        self.frozen.discard(over.model)
        self._figures.follow(over, None)

    async def _try(self, running: Running) -> None:
        """Look at one trial. While the state can't be reached its replica serves the baseline alone."""
        reachable = self._fleet.reachable
        if reachable:
            try:
                await self._look(running)
            except Unavailable as error:
                self._journal.lifecycle("experiment_not_written", level="warning", model=running.trial.model, reason=str(error))
                reachable = False
            except Superseded:
                self._hear(emptied=False)
                return
            except NotFound:
                if await self._ended_elsewhere(running.trial):
                    return
                await self._end(running.trial, State.ABORTED, "what it had gathered is lost: the baseline answers", SERVER)
                return
        if running.cut_off is reachable and running.trial.going:
            running.cut_off = not reachable
            self._journal.lifecycle("experiment_cut_off", level="warning", model=running.trial.model, cut_off=running.cut_off)
            self._splits.under(running.trial.model, running.traffic() if reachable else running.baseline_only())

    async def _look(self, running: Running) -> None:
        trial, now = running.trial, self.now()
        if fault := running.fault():
            await self._end(trial, State.ABORTED, fault, SERVER)
            return
        await self._fleet.publish(trial.id, running.take(now))
        running.evidence = evidence = await self._fleet.gathered(trial.id)
        if trial.kind is Kind.EXPERIMENT:
            running.report = analyse(trial.plan.guards, evidence, trial.plan.alpha)
            return
        standing = Standing(trial.step, trial.since, running.crashes, running.not_finite)
        running.verdict = verdict = judge(trial.plan, standing, evidence, now)
        if not self._fleet.leads and not running.crashes and not running.not_finite:
            return
        self._figures.concluded(trial.model, verdict.action, verdict.reason)
        if verdict.action is Action.ROLL_BACK:
            await self._end(trial, State.ROLLED_BACK, in_words(trial, verdict), SERVER, verdict)
        elif verdict.action is Action.PROMOTE and trial.state is State.RUNNING:
            await self._promote(trial, in_words(trial, verdict), SERVER, full=False, verdict=verdict)

    async def _promote(self, trial: Trial, why: str, who: str, *, full: bool, verdict: Verdict | None = None) -> None:
        if full or trial.step + 2 >= len(trial.plan.steps):
            await self._splits.keep(trial.model, {trial.canary: 100.0}, who, f"a canary was promoted: {why}")
            await self._end(trial, State.PROMOTED, why, who, verdict)
            return
        after = replace(trial, step=trial.step + 1, since=self.now(), state=State.RUNNING)
        await self._change(after, f"{after.share:g} % to version {after.canary}", why, who)

    async def _change(self, trial: Trial, now: str, why: str, who: str) -> None:
        """Write down how a trial goes on, then let it. Raises Unavailable: nothing changed."""
        was = self._trials[trial.model]
        await self._write(trial, f"{was.share:g} % to version {was.canary}", now, why, who)
        self._stand(trial)

    def _stand(self, trial: Trial) -> None:
        """A trial that goes on stands so from now on."""
        was, running = self._trials[trial.model], self._running.get(trial.model)
        self._trials[trial.model] = trial
        if running is None:
            return
        running.trial = trial
        if trial.share != was.share:
            self._splits.under(trial.model, running.baseline_only() if running.cut_off else running.traffic())
        self._figures.follow(trial, running)

    async def _end(self, trial: Trial, state: State, why: str, who: str, verdict: Verdict | None = None) -> None:
        """End it at once, and write that down as soon as it can be."""
        running = self._running.pop(trial.model, None) or Running(trial, self._table)
        said = {**said_of(running, trial), **({} if verdict is None else of_verdict(verdict, trial))}
        over = replace(trial, state=state, ended=self.now(), why=why, said=said)
        self._trials[trial.model] = over
        self._splits.under(trial.model, None)
        self.frozen.discard(trial.model)
        self._journal.lifecycle("experiment_over", model=trial.model, id=trial.id, kind=trial.kind, state=state, why=why)
        was = f"{trial.share:g} % to version {trial.canary}"
        self._unwritten[trial.model] = Event(self.now(), who, trial.kind.value, trial.model, was, state.value, why)
        self._figures.follow(over, None)
        await self._write_end(trial.model)

    async def _write_end(self, model: str) -> None:
        event, trial = self._unwritten.get(model), self._trials.get(model)
        if event is None or trial is None:
            return
        try:
            if await self._written.over(trial, event):
                await self._fleet.end(trial.id)
        except Unavailable as error:
            self._some.set()
            self._journal.lifecycle("experiment_not_written", level="error", model=model, reason=str(error))
        else:
            self._unwritten.pop(model, None)

    async def _write(self, trial: Trial, was: str, now: str, why: str, who: str) -> None:
        event = Event(self.now(), who, trial.kind.value, trial.model, was, now, why)
        await self._written.put(trial, event, self._fleet.fence if who == SERVER else None)
        self._journal.lifecycle("experiment", model=trial.model, id=trial.id, kind=trial.kind, was=was, now=now, why=why)

    def _take_up(self, trial: Trial) -> None:
        """Have a trial share its model's requests out."""
        self._unwritten.pop(trial.model, None)
        self._trials[trial.model] = trial
        self._running[trial.model] = running = Running(trial, self._table)
        self.frozen.add(trial.model)
        self._splits.under(trial.model, running.traffic())
        self._some.set()
        self._figures.follow(trial, running)

    def _going(self, model: str, kind: Kind) -> Trial:
        trial, _ = self.find(model, kind)
        if trial.state not in GOING:
            raise Conflict(f"the {kind} of model '{model}' is over: {trial.state}")
        return trial

    def _lock(self, model: str) -> asyncio.Lock:
        return self._locks.setdefault(model, asyncio.Lock())
