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
from server.repository.declare.routing import Sticky, read_sticky, weights_fault

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


def sticky(model: str, text: str) -> Sticky:
    """`header:NAME`, `parameter:NAME` or `id`, read. Raises ConfigError."""
    try:
        return read_sticky(text)
    except ValueError as error:
        raise ConfigError(f"routing of model {model!r}: sticky: {error}") from error


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
    if fault := weights_fault(weights):
        raise ConfigError(f"routing of model {str(model)[:80]!r}: weights: {fault}")
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
