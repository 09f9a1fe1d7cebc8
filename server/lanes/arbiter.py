"""Shares a device's time between the models that run on it: deficit round robin on predicted seconds, so that none starves another.

A device is a GPU or a set of cores, counted in slots; a run takes as many as it has threads. Runs are started only while their slots are
free, so that a model's learned costs are its own and not its neighbours' contention. A run can't be interrupted: so a model leaves slots
free for a neighbour that ran a moment ago and whose runs are much shorter. A model that is alone asks nobody. Pure: `now` is an argument,
and whoever waits is called back when its turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

ACTIVE = 2.0  # seconds after its last run that a model counts as a neighbour
PATIENCE = 0.5  # of its own run: the longest that a neighbour should wait for another's
LEARNING = 0.2  # weight of the newest run in what the next is thought to take
QUANTUM = 2e-3  # seconds of one slot that each round gives to each model that waits
MOST_DEBT = 1.0  # seconds
TINY = 1e-9


class Share:
    """One model's place on a device. `on_turn` is called when one that was refused may run: it starts a run and says True, or has none.
    `yields`: its runs may wait, so that nobody leaves slots free for them."""

    __slots__ = ("_device", "backlogged", "deficit", "on_turn", "ran", "running", "seconds", "used", "waiting", "width", "yields")

    def __init__(self, device: Device, width: float, on_turn: Callable[[], bool]) -> None:
        self._device = device
        self.width = width
        self.on_turn = on_turn
        self.running = 0
        self.waiting = False
        self.backlogged = False
        self.seconds = 0.0
        self.deficit = 0.0
        self.used = 0.0
        self.ran = -math.inf
        self.yields = False

    def take(self, now: float) -> bool:
        """Whether a run may start: then it has its slots until `give`. Else `on_turn` is called once it may."""
        if self._device.alone:
            self.running += 1
            return True
        return self._device.take(self, now)

    def stage(self, now: float) -> bool:
        """Whether a run may be lined up behind the one that the model has in hand: where no other model wants the device."""
        if self._device.alone or self._device.quiet(self, now):
            self.running += 1
            return True
        return False

    def give(self, seconds: float, now: float, *, more: bool) -> None:
        """A run is over, after so many seconds; 0 for one that came to nothing. `more`: the next could start at once."""
        self.running -= 1
        self.backlogged = more
        if seconds:
            self.used = self.use(now) * ACTIVE + seconds * self.width
            self.ran = now
            if not self._device.alone:
                self.deficit = max(-MOST_DEBT, self.deficit - (seconds - self.seconds) * self.width)
            self.seconds += (LEARNING if self.seconds else 1.0) * (seconds - self.seconds)
        if not self._device.alone:
            if more:
                self._device.wait(self)
            self._device.dispatch(now)

    def use(self, now: float) -> float:
        """Slots that it used of late, on average."""
        return self.used * math.exp((self.ran - now) / ACTIVE) / ACTIVE

    def idle(self) -> bool:
        """Whether nothing runs on the device, nor waits for it."""
        return not any(share.running or share.waiting for share in self._device.shares)

    def leave(self, now: float) -> None:
        """The model is gone, its runs with it."""
        self._device.leave(self, now)


class Device:
    """`slots` are its cores. `exclusive`: it runs one model at a time, as a GPU should; its slots are then shared by that model's lanes."""

    def __init__(self, slots: float, *, exclusive: bool = False) -> None:
        self.slots = slots
        self.exclusive = exclusive
        self.shares: list[Share] = []
        self.alone = True
        self._ring: list[Share] = []

    def join(self, width: float, on_turn: Callable[[], bool]) -> Share:
        """A model's place; each of its runs takes `width` slots, all where it wants more."""
        share = Share(self, min(width, self.slots), on_turn)
        self.shares.append(share)
        self.alone = len(self.shares) == 1
        return share

    def leave(self, share: Share, now: float) -> None:
        """See Share.leave."""
        self.shares.remove(share)
        if share.waiting:
            self._ring.remove(share)
        self.alone = len(self.shares) <= 1
        self.dispatch(now)

    def take(self, share: Share, now: float) -> bool:
        """See Share.take."""
        if not share.waiting:
            if not self._ring and self._fits(share) and not self._kept_back(share, now):
                share.running += 1
                return True
            self.wait(share)
            self.dispatch(now)
        return False

    def wait(self, share: Share) -> None:
        """It waits for its turn, if it doesn't yet."""
        if not share.waiting:
            share.waiting = True
            share.deficit = min(0.0, share.deficit)  # what it owes stays, what it didn't use in time is gone
            self._ring.append(share)

    def quiet(self, share: Share, now: float) -> bool:
        """Whether no other model waits, runs or ran a moment ago."""
        others = [other for other in self.shares if other is not share]
        return not any(other.waiting or other.running or (now - other.ran < ACTIVE and not other.yields) for other in others)

    def dispatch(self, now: float) -> None:
        """Start what may run of those that wait. Somebody who waits for slots to come free isn't overtaken by who needs fewer."""
        while self._ring:
            candidates = [share for share in self._ring if not self._kept_back(share, now)]
            if not candidates:
                return
            share, rounds = self._next(candidates)
            if not self._fits(share):
                return
            for other in candidates:
                other.deficit += rounds * QUANTUM
            share.deficit -= share.seconds * share.width
            self._ring.remove(share)
            share.waiting = False
            share.running += 1
            if not share.on_turn():
                share.running -= 1

    def _next(self, candidates: list[Share]) -> tuple[Share, int]:
        """Whose deficit covers its run after the fewest rounds, and after how many."""
        rounds = [max(0, math.ceil((share.seconds * share.width - share.deficit) / QUANTUM)) for share in candidates]
        fewest = min(rounds)
        return candidates[rounds.index(fewest)], fewest

    def _fits(self, share: Share) -> bool:
        if self.exclusive and any(other.running for other in self.shares if other is not share):
            return False
        return self._used() + share.width <= self.slots + TINY

    def _kept_back(self, share: Share, now: float) -> bool:
        """Whether the slots that it would take are for a quiet neighbour, whose runs are too short to wait for one of its own. Slots
        for one other run of its own must be left, or it would starve."""
        if self.exclusive:
            return False
        kept = max((other.width for other in self.shares if other is not share and self._may_come(other, share.seconds, now)), default=0.0)
        most = self.slots - kept
        return kept > 0.0 and share.width <= most + TINY and self._used() + share.width > most + TINY

    def _may_come(self, other: Share, seconds: float, now: float) -> bool:
        """Whether that neighbour, which uses less than its fair share, may want to run at any time and would suffer from a run of so
        many seconds."""
        if other.yields or other.running or other.backlogged or now - other.ran > ACTIVE:
            return False
        if 0.0 < seconds <= PATIENCE * other.seconds:  # 0: it hasn't run yet, so nobody knows
            return False
        return other.use(now) < self.slots / len(self.shares)

    def _used(self) -> float:
        return sum(share.running * share.width for share in self.shares)


class Arbiter:
    """The devices of this machine, by name."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._devices: dict[str, Device] = {}

    def device(self, name: str) -> Device:
        """`cpu` is all cores; anything else a GPU."""
        found = self._devices.get(name)
        if found is None:
            found = self._devices[name] = Device(self._cores) if name == "cpu" else Device(1.0, exclusive=True)
        return found
