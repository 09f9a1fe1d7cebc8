"""Which version should answer a request, and why: the URL's, else the split's by sticky key, else by weights, else the version policy's.

Pure: the draw is an argument, and so is what's ready. A key goes to a version by weighted rendezvous hashing (Thaler & Ravishankar 1998;
weights after Schindelhauer & Schomaker 2005): each version scores the key by itself and the best has it. So every replica agrees without
talking, and a key moves only from a version whose weight fell or to one whose weight rose: between two versions, as in a canary, no more
than must.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple

from server.errors import ConfigError
from server.messages import Scalar
from server.validation import nearest

WHOLE = 100.0
"""What weights add up to: they're percentages."""
CLOSE = 1e-6
MOST_TARGETS = 16
MOST_DIGITS = 18  # of a version's number
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
_UNIT = 2.0**-53


class RouteReason(StrEnum):
    """Why a version answers; explain's route_reason."""

    VERSION = "version"  # the request names it
    STICKY = "sticky"  # its key belongs to this version
    WEIGHTS = "weights"  # drawn
    STICKY_FELL = "sticky_not_ready"  # its key's version isn't ready: the next one by rank has it
    WEIGHTS_FELL = "weights_not_ready"  # the drawn version isn't ready: drawn again among the others
    NONE_READY = "none_ready"  # no version that has weight is ready: the version policy's
    LATEST = "latest"  # the version policy's: nothing is split


RANDOMISED = frozenset((RouteReason.STICKY, RouteReason.WEIGHTS))
"""Requests that an experiment may count: chance alone chose their version."""


class Choice(NamedTuple):
    """The version and the reason. `version` is empty where the model has none that's ready."""

    version: str
    reason: RouteReason


class StickyKind(StrEnum):
    """Where a sticky key stands."""

    HEADER = "header"
    PARAMETER = "parameter"
    ID = "id"


@dataclass(frozen=True, slots=True)
class Sticky:
    """Where a request's sticky key is read: a header, a request parameter, or its id (which has no name)."""

    kind: StickyKind
    name: str = ""

    def key(self, request_id: str, parameters: Mapping[str, Scalar], headers: Mapping[str, str]) -> str:
        """A request's key, empty where it has none. Headers are looked up in small letters."""
        match self.kind:
            case StickyKind.HEADER:
                return headers.get(self.name, "")
            case StickyKind.PARAMETER:
                value = parameters.get(self.name)
                return "" if value is None else str(value)
            case StickyKind.ID:
                return request_id


def sticky(model: str, text: str) -> Sticky:
    """`header:NAME`, `parameter:NAME` or `id`, read. Raises ConfigError."""
    kind, _, name = text.partition(":")
    expected = f"routing of model {model!r}: sticky: expected header:NAME, parameter:NAME or id, got {text[:80]!r}"
    if kind not in tuple(StickyKind):
        raise ConfigError(expected + nearest(kind, tuple(StickyKind)))
    if bool(name) == (kind == StickyKind.ID):
        raise ConfigError(expected)
    return Sticky(StickyKind(kind), name.lower() if kind == StickyKind.HEADER else name)


@dataclass(frozen=True, slots=True)
class Split:
    """How requests are shared out. Made by `split`, which checks. `bounds` are the weights' running sums, over 1; `salts` the versions'."""

    versions: tuple[str, ...]
    weights: tuple[float, ...]
    bounds: tuple[float, ...]
    salts: tuple[tuple[int, float, str], ...]

    def by_draw(self, ready: Container[str], draw: float) -> Choice | None:
        """By weights; `draw` is uniform in [0, 1). None where nothing is ready."""
        index = 0
        for bound in self.bounds:
            if draw < bound:
                break
            index += 1
        version = self.versions[index]
        return Choice(version, RouteReason.WEIGHTS) if version in ready else self._others(ready, draw, index)

    def by_key(self, ready: Container[str], key: str) -> Choice | None:
        """By sticky key. None where nothing is ready."""
        point = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        best = own = -math.inf
        chosen = owner = ""
        for salt, weight, version in self.salts:
            mixed = ((point ^ salt) * _MIX) & _MASK
            mixed = ((mixed ^ (mixed >> 32)) * _MIX) & _MASK
            score = math.log(((mixed >> 11) + 0.5) * _UNIT) / weight
            if score > own:
                own, owner = score, version
            if score > best and version in ready:
                best, chosen = score, version
        if not chosen:
            return None
        return Choice(chosen, RouteReason.STICKY if chosen == owner else RouteReason.STICKY_FELL)

    def _others(self, ready: Container[str], draw: float, index: int) -> Choice | None:
        """The drawn version isn't ready. Where in its stretch the draw fell is as good as a second draw."""
        low = self.bounds[index - 1] if index else 0.0
        again = (draw - low) / (self.bounds[index] - low)
        left = [(weight, version) for weight, version in zip(self.weights, self.versions, strict=True) if version in ready]
        if not left:
            return None
        rest = again * sum(weight for weight, _ in left)
        for weight, version in left:
            rest -= weight
            if rest < 0:
                return Choice(version, RouteReason.WEIGHTS_FELL)
        return Choice(left[-1][1], RouteReason.WEIGHTS_FELL)


def split(model: str, weights: Mapping[str, float], name: str = "") -> Split:
    """Weights in percent by version, checked. `name` is the experiment's: two of them share out the same keys independently.

    Raises ConfigError that names the model, what was expected and what was got."""
    _check(model, weights)
    shares = {version: float(weights[version]) for version in sorted(weights, key=int) if weights[version] > 0}
    total = math.fsum(shares.values())
    bounds = [bound / total for bound in accumulate(shares.values())]
    bounds[-1] = 1.0
    salts = tuple((_salt(model, name, version), weight, version) for version, weight in shares.items())
    return Split(tuple(shares), tuple(shares.values()), tuple(bounds), salts)


def choose(rules: Split | None, ready: Container[str], latest: str, key: str, draw: float) -> Choice:
    """Which version answers a request that names none. `latest` is the version policy's, `key` its sticky key or empty."""
    if rules is None:
        return Choice(latest, RouteReason.LATEST)
    found = rules.by_key(ready, key) if key else rules.by_draw(ready, draw)
    return found or Choice(latest, RouteReason.NONE_READY)


def _salt(model: str, name: str, version: str) -> int:
    return int.from_bytes(blake2b("\0".join((model, name, version)).encode(), digest_size=8).digest(), "little")


def _check(model: str, weights: Mapping[str, float]) -> None:
    where = f"routing of model {str(model)[:80]!r}: weights"
    if not 0 < len(weights) <= MOST_TARGETS:
        raise ConfigError(f"{where}: expected 1 to {MOST_TARGETS} versions, got {len(weights)}")
    for version, weight in weights.items():
        if not (version.isascii() and version.isdecimal() and len(version) <= MOST_DIGITS):
            raise ConfigError(f"{where}: expected versions that are decimal numbers, got {version[:80]!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= WHOLE:
            raise ConfigError(f"{where}: version {version}: expected a percentage from 0 to 100, got {str(weight)[:80]}")
    total = math.fsum(weights.values())
    if abs(total - WHOLE) > CLOSE:
        said = " + ".join(f"{weight:g}" for weight in weights.values())
        raise ConfigError(f"{where}: expected percentages that add up to 100, got {said} = {total:g}")
