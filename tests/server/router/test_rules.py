"""Which version answers and why: shares, keys that stay, versions that aren't ready, weights that can't be used."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigError
from server.repository.declare.routing import Sticky, StickyKind
from server.router.rules import Choice, RouteReason, Split, choose, split, sticky

KEYS = [f"user-{number}" for number in range(20_000)]
ALL = frozenset("123")


def of_keys(rules: Split, ready: frozenset[str] = ALL) -> list[Choice]:
    return [choose(rules, ready, "9", key, 0.0) for key in KEYS]


def shares(choices: list[Choice]) -> dict[str, float]:
    return {version: count / len(choices) for version, count in Counter(choice.version for choice in choices).items()}


def near(share: float, found: float, count: int = len(KEYS)) -> bool:
    """Within four standard errors."""
    return abs(found - share) <= 4 * math.sqrt(share * (1 - share) / count)


def test_without_a_split_the_version_policy_answers() -> None:
    assert choose(None, ALL, "3", "key", 0.5) == ("3", RouteReason.LATEST)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any), st.integers(0, 999))
def test_draws_are_shared_out_by_weight(parts: list[int], at: int) -> None:
    total = sum(parts)
    rules = split("m", {str(number): 100 * part / total for number, part in enumerate(parts, 1)})
    ready = frozenset(rules.versions)
    drawn = Counter(choose(rules, ready, "", "", (step + 0.5) / 1000).version for step in range(1000))
    assert all(abs(drawn[str(number)] - 1000 * part / total) <= 1 for number, part in enumerate(parts, 1))
    assert choose(rules, ready, "", "", (at + 0.5) / 1000).reason is RouteReason.WEIGHTS


def test_keys_are_shared_out_by_weight_and_stay() -> None:
    rules = split("m", {"1": 70, "2": 25, "3": 5})
    found = of_keys(rules)
    assert found == of_keys(rules)
    assert all(near(share, shares(found)[version]) for version, share in {"1": 0.7, "2": 0.25, "3": 0.05}.items())
    assert {choice.reason for choice in found} == {RouteReason.STICKY}


@pytest.mark.parametrize(("before", "after"), [(1, 5), (5, 25), (25, 50), (50, 100), (50, 5)])
def test_a_canary_step_moves_the_fewest_keys(before: int, after: int) -> None:
    old, new = (of_keys(split("m", {"1": 100 - weight, "2": weight})) for weight in (before, after))
    moved = [(a.version, b.version) for a, b in zip(old, new, strict=True) if a != b]
    assert set(moved) == ({("1", "2")} if after > before else {("2", "1")})
    assert near(abs(after - before) / 100, len(moved) / len(KEYS))


def test_keys_leave_what_fell_or_come_to_what_rose() -> None:
    old, new = of_keys(split("m", {"1": 60, "2": 20, "3": 20})), of_keys(split("m", {"1": 40, "2": 40, "3": 20}))
    moved = Counter((a.version, b.version) for a, b in zip(old, new, strict=True) if a.version != b.version)
    assert all(away == "1" or to == "2" for away, to in moved)
    assert moved["1", "2"] > 0.6 * moved.total()
    assert moved.total() < 0.25 * len(KEYS)  # at least 0.2 must


def test_two_experiments_share_out_the_same_keys_independently() -> None:
    first, second = (of_keys(split("m", {"1": 50, "2": 50}, name)) for name in ("a", "b"))
    same = sum(a.version == b.version for a, b in zip(first, second, strict=True)) / len(KEYS)
    assert near(0.5, same)


def test_neighbouring_keys_are_independent() -> None:
    arms = np.array([choice.version == "2" for choice in of_keys(split("m", {"1": 50, "2": 50}))], float)
    for lag in (1, 2, 10, 100):
        assert abs(np.corrcoef(arms[:-lag], arms[lag:])[0, 1]) < 4 / math.sqrt(len(arms))


def test_a_version_that_is_not_ready_leaves_its_keys_to_the_others_by_weight() -> None:
    rules = split("m", {"1": 60, "2": 30, "3": 10})
    before, after = of_keys(rules), of_keys(rules, frozenset("13"))
    fell = [b for a, b in zip(before, after, strict=True) if a.version == "2"]
    assert {choice.reason for choice in fell} == {RouteReason.STICKY_FELL}
    assert near(1 / 7, shares(fell)["3"], len(fell))
    assert all(a == b for a, b in zip(before, after, strict=True) if a.version != "2")


def test_a_drawn_version_that_is_not_ready_leaves_it_to_the_others_by_weight() -> None:
    rules = split("m", {"1": 60, "2": 30, "3": 10})
    found = [choose(rules, frozenset("13"), "", "", (step + 0.5) / 7000) for step in range(7000)]
    fell = Counter(choice.version for choice in found if choice.reason is RouteReason.WEIGHTS_FELL)
    assert fell.total() == pytest.approx(2100, abs=2)
    assert fell["3"] == pytest.approx(300, abs=2)


@pytest.mark.parametrize("key", ["", "somebody"])
def test_where_no_target_is_ready_the_version_policy_answers_and_says_so(key: str) -> None:
    assert choose(split("m", {"1": 50, "2": 50}), frozenset("4"), "4", key, 0.3) == ("4", RouteReason.NONE_READY)


@given(st.text(), st.floats(0, 1, exclude_max=True))
def test_nothing_goes_to_a_version_without_weight(key: str, draw: float) -> None:
    assert choose(split("m", {"1": 0, "2": 100}), ALL, "9", key, draw).version == "2"


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"1": 95, "2": 6}, "expected percentages that add up to 100, got 95 + 6 = 101"),
        ({"1": 0.95, "2": 0.05}, "expected percentages that add up to 100, got 0.95 + 0.05 = 1"),
        ({}, "expected 1 to 16 versions, got 0"),
        ({str(number): 1 for number in range(100)}, "expected 1 to 16 versions, got 100"),
        ({"latest": 100}, "expected versions that are decimal numbers, got 'latest'"),
        ({"²": 100}, "expected versions that are decimal numbers, got '²'"),
        ({"1": 110, "2": -10}, "version 1: expected a percentage from 0 to 100, got 110"),
        ({"1": math.nan, "2": 100}, "version 1: expected a percentage from 0 to 100, got nan"),
        ({"1": True, "2": 99}, "version 1: expected a percentage from 0 to 100, got True"),
    ],
)
def test_weights_that_cannot_be_used(weights: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split("ranker", weights)
    assert str(caught.value) == f"routing of model 'ranker': weights: {told}"


def test_where_a_key_is_read() -> None:
    assert sticky("m", "header:X-User-Id") == Sticky(StickyKind.HEADER, "x-user-id")
    assert sticky("m", "header:X-User-Id").key("id", {}, "ann") == "ann"
    assert sticky("m", "parameter:User").key("id", {"User": 7}, "") == "7"
    assert sticky("m", "id").key("id-1", {}, "") == "id-1"
    assert sticky("m", "parameter:user").key("id", {}, "") == sticky("m", "header:user").key("id", {}, "") == ""


@pytest.mark.parametrize("text", ["headers:x", "header", "header:", "id:x", "cookie:x", ""])
def test_a_key_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="routing of model 'm': sticky: expected header:NAME, parameter:NAME or id, got"):
        sticky("m", text)
