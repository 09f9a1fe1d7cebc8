"""Whose turn it is: the highest priority, raised by waiting; among its tenants by deficit round robin; then the most urgent. And how much a
tenant may send at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.engine.request_queue import PATIENCE, Line

QUANTUM = 8  # rows of credit a turn and unit of weight: small against a full run, so that tenants share one


@dataclass(frozen=True, slots=True)
class Tenant:
    """What a tenant is worth and may send. Quotas None: without bound."""

    weight: float = 1.0
    rows_per_s: float | None = None
    bytes_per_s: float | None = None


DEFAULT = Tenant()


def rank(line: Line, now: float) -> int:
    """The priority of a line's head, one higher for each half of its time that it waited: with a deadline before that's past, without one
    until it's the highest, so that nothing starves."""
    priority = line.priority
    if priority == 1:
        return 1
    head = line.tickets[0]
    half = PATIENCE if head.deadline is None else (head.deadline - head.queued) / 2
    waited = now - head.queued
    return 1 if waited >= priority * half else priority - int(waited / half)


class Turns:
    """The credits of tenants that have something waiting, in the order of their turns; one with nothing waiting saves none."""

    __slots__ = ("_credit", "_tenants")

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = tenants
        self._credit: dict[str, float] = {}

    def pick(self, lines: Iterable[Line], now: float) -> Line:
        """The line whose head is next. There must be one."""
        ranked = [(rank(line, now), line) for line in lines]
        best = min(one for one, _ in ranked)
        first = [line for one, line in ranked if one == best]
        present = {line.tenant for line in first}
        if len(present) > 1:
            tenant = self._next(present)
            first = [line for line in first if line.tenant == tenant]
        return min(first, key=_due)

    def _next(self, present: set[str]) -> str:
        credit = self._credit
        for gone in credit.keys() - present:
            del credit[gone]
        for new in sorted(present - credit.keys()):
            credit[new] = 0.0
        while True:
            tenant = next(iter(credit))
            saved = credit[tenant]
            if saved > 0:
                return tenant
            del credit[tenant]  # to the end of the round, with the credit for its next turn
            credit[tenant] = saved + QUANTUM * self._tenants.get(tenant, DEFAULT).weight

    def spend(self, tenant: str, rows: int) -> None:
        """Rows of a tenant are about to run."""
        if tenant in self._credit:
            self._credit[tenant] -= rows


def _due(line: Line) -> float:
    return line.tickets[0].due


class Quotas:
    """What tenants may still send: a bucket for each bound, as large as a second of it. Only tenants that have one are kept track of."""

    __slots__ = ("_buckets",)

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._buckets = {name: buckets for name, tenant in tenants.items() if (buckets := _buckets(tenant))}

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def charge(self, tenant: str, rows: int, size: int, now: float) -> tuple[str, float] | None:
        """Let a request through, None, or say which bound it passes and in how many seconds it wouldn't."""
        buckets = self._buckets.get(tenant)
        if buckets is None:
            return None
        asked = {"rows_per_s": rows, "bytes_per_s": size}
        for name, bucket in buckets.items():
            if wait := bucket.lacks(asked[name], now):
                return name, wait
        for name, bucket in buckets.items():
            bucket.level -= asked[name]
        return None


@dataclass(slots=True)
class _Bucket:
    """Fills at `speed` up to a second's worth; may be overdrawn by one request, so that a large one passes at all."""

    speed: float
    level: float
    when: float | None = None

    def lacks(self, amount: float, now: float) -> float:
        """Seconds until `amount` may pass, 0 if it may now."""
        if self.when is not None:
            self.level = min(self.speed, self.level + (now - self.when) * self.speed)
        self.when = now
        missing = min(amount, self.speed) - self.level
        return missing / self.speed if missing > 0 else 0.0


def _buckets(tenant: Tenant) -> dict[str, _Bucket]:
    bounds = {"rows_per_s": tenant.rows_per_s, "bytes_per_s": tenant.bytes_per_s}
    return {name: _Bucket(speed, speed) for name, speed in bounds.items() if speed is not None}
