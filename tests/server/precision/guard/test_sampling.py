"""Which answers are looked at and when: each with the same chance, never over the budget, bounded in number and bytes."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messages import Layout
from server.precision.guard.sampling import MOST_AT_ONCE, SPAN, Pacer, Sample, Sampler, Waiting

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def sample(size: int) -> Sample:
    return Sample({}, {}, Layout(()), "int8", 0.0, size)


@given(sizes, st.floats(0.001, 1.0), st.integers(0, 1000))
def test_positions_lie_in_their_batch_and_rise(batches: list[int], share: float, seed: int) -> None:
    sampler = Sampler(share, Random(seed).random)
    for answers in batches:
        drawn = sampler.drawn(answers)
        assert list(drawn) == sorted(set(drawn))
        assert all(0 <= position < answers for position in drawn)


@given(sizes, st.floats(0.01, 1.0), st.integers(0, 1000))
def test_how_answers_come_in_batches_doesnt_matter(batches: list[int], share: float, seed: int) -> None:
    together, apart = Sampler(share, Random(seed).random), Sampler(share, Random(seed).random)
    wanted = together.drawn(sum(batches))
    found, start = [], 0
    for answers in batches:
        found += [start + position for position in apart.drawn(answers)]
        start += answers
    assert tuple(found) == wanted


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 1.0])
def test_the_share_drawn_is_the_share_asked_for(share: float) -> None:
    sampler = Sampler(share, Random(1).random)
    answers = round(5_000 / share)
    drawn = sum(len(sampler.drawn(8)) for _ in range(answers // 8))
    assert drawn / answers == pytest.approx(share, rel=0.08)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Sampler(share)


@given(
    st.floats(0.001, 1.0),
    st.floats(0.0, 100.0),
    st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 0.2), st.booleans()), max_size=200),
)
def test_no_load_makes_it_spend_more_than_its_budget(budget: float, floor: float, turns: list[tuple[float, float, bool]]) -> None:
    pacer, now, longest = Pacer(budget, floor, 0.0), 0.0, 0.0
    for wait, seconds, idle in turns:
        now += wait
        if pacer.may(now, seconds, idle=idle):
            now += seconds
            pacer.spent(now, seconds, 1)
            longest = max(longest, seconds)
        assert pacer.seconds <= budget * now + longest + 1e-9
        assert pacer.share(now) <= max(1.0, now) * budget + longest + 1e-9


@given(st.floats(0.5, 50.0), st.floats(1.0, 4.0))
def test_a_device_that_is_never_idle_gives_the_floor(floor: float, seconds: float) -> None:
    pacer, now, taken = Pacer(1.0, floor, 0.0), 0.0, 0
    while now < seconds:
        if most := pacer.may(now, 0.0, idle=False):
            assert most == 1
            pacer.spent(now, 0.0, most)
            taken += most
        now += 0.001
    assert taken == pytest.approx(floor * seconds, abs=1.5 + 0.06 * floor * seconds)


def test_an_idle_device_gives_bursts_that_are_bounded() -> None:
    pacer = Pacer(0.05, 0.2, 0.0)
    assert pacer.may(3600.0, 0.01, idle=True) == MOST_AT_ONCE
    pacer.spent(3600.0, 0.05 * SPAN, 4)
    assert pacer.may(3600.0, 0.01, idle=True) == 0
    assert pacer.may(3600.3, 0.01, idle=True) == MOST_AT_ONCE


def test_without_a_floor_a_busy_device_gives_nothing() -> None:
    assert Pacer(0.05, 0.0, 0.0).may(100.0, 0.0, idle=False) == 0


@given(st.lists(st.one_of(st.integers(1, 400), st.none()), max_size=80))
def test_what_waits_is_bounded_and_counted(turns: list[int | None]) -> None:
    waiting, given_, taken = Waiting(8, 1000), 0, 0
    for size in turns:
        if size is None:
            taken += len(waiting.take(3))
        elif waiting.room(size):
            waiting.add(sample(size))
            given_ += 1
        assert len(waiting) <= 8
        assert waiting.bytes <= 1000
        assert len(waiting) == given_ - taken
    assert waiting.passed + given_ == sum(size is not None for size in turns)
    waiting.clear()
    assert (len(waiting), waiting.bytes) == (0, 0)


def test_the_oldest_is_taken_first() -> None:
    waiting = Waiting()
    for size in (1, 2, 3):
        waiting.add(sample(size))
    assert [each.size for each in waiting.take(2)] == [1, 2]
    assert np.isclose(waiting.bytes, 3)
