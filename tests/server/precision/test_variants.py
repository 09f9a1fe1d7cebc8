"""A variant's states: what can happen when, how long it's pinned out, and who gives up its memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.precision.ladder import Skip
from server.precision.variants import FIRST_PIN, LONGEST_PIN, RESIDENT, TABLE, Event, Holding, Room, State, Variant, diagram, make_room

SERVE = (Event.LOAD, Event.READY, Event.ACTIVATE)


def after(*events: Event, variant: Variant | None = None) -> Variant:
    variant = variant or Variant("int8", proven=True)
    for now, event in enumerate(events):
        variant.step(event, float(now), why=event.name)
    return variant


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), State.ABSENT),
        (SERVE, State.ACTIVE),
        ((*SERVE, Event.REPLACE, Event.DRAINED, Event.EVICT, *SERVE), State.ACTIVE),
        ((*SERVE, Event.REPLACE, Event.ACTIVATE), State.ACTIVE),  # back before it was drained
        ((Event.LOAD, Event.FAIL), State.FAILED),
        ((Event.LOAD, Event.FAIL, *SERVE), State.ACTIVE),
        ((*SERVE, Event.PIN, Event.DRAINED), State.PINNED_OUT),
        ((Event.LOAD, Event.PIN, Event.READY), State.PINNED_OUT),  # pinned out while it was loading
        ((*SERVE, Event.PIN, Event.UNPIN), State.ABSENT),
        ((*SERVE, Event.WITHDRAW), State.ABSENT),
    ],
)
def test_a_life(events: tuple[Event, ...], state: State) -> None:
    variant = after(*events)
    assert (variant.state, variant.why) == (state, events[-1].name if events else "")


def test_what_cannot_happen_raises_and_changes_nothing() -> None:
    variant = after(Event.LOAD)
    with pytest.raises(ValueError, match="variant int8 is loading: 'put in the place of the one that answered' can't happen"):
        variant.step(Event.ACTIVATE, 9.0)
    assert (variant.state, variant.why) == (State.LOADING, "LOAD")


def test_only_what_is_warm_is_put_in_place_or_evicted() -> None:
    into_active = {state for (state, _), then in TABLE.items() if then is State.ACTIVE}
    into_evicted = {state for (state, _), then in TABLE.items() if then is State.EVICTED}
    assert (into_active, into_evicted) == ({State.WARM, State.DRAINING}, {State.WARM})


def test_every_state_is_reached_and_left_and_can_be_pinned_out_and_withdrawn() -> None:
    assert set(TABLE.values()) == {state for state, _ in TABLE} == set(State)
    assert {state for state, event in TABLE if event is Event.PIN} == set(State)
    assert {state for state, event in TABLE if event is Event.WITHDRAW} == set(State) - {State.ABSENT}


def test_a_pin_doubles_until_a_day_and_is_forgotten_after_one() -> None:
    variant, now, spans = Variant("int8"), 0.0, []
    for _ in range(12):
        variant.step(Event.PIN, now)
        spans.append(variant.pinned_until - now)
        assert not variant.pin_over(variant.pinned_until - 1)
        now = variant.pinned_until
        assert variant.pin_over(now)
        variant.step(Event.UNPIN, now)
        assert not variant.pin_over(now)
    assert spans[:3] == [FIRST_PIN, 2 * FIRST_PIN, 4 * FIRST_PIN]
    assert spans[-1] == LONGEST_PIN
    variant.step(Event.PIN, now + LONGEST_PIN + 1)
    assert variant.pins == 1


def test_a_pin_upon_a_pin_lasts_longer() -> None:
    variant = after(Event.PIN, Event.PIN)
    assert variant.pinned_until == 1 + 2 * FIRST_PIN


@pytest.mark.parametrize(
    ("events", "proven", "barred"),
    [
        (SERVE, True, None),
        (SERVE, False, Skip.UNPROVEN),
        ((Event.LOAD, Event.FAIL), True, Skip.FAILED),
        ((Event.PIN,), False, Skip.PINNED_OUT),
        ((Event.LOAD, Event.READY, Event.EVICT), True, None),
    ],
)
def test_as_the_ladder_sees_it(events: tuple[Event, ...], proven: bool, barred: Skip | None) -> None:
    assert after(*events, variant=Variant("int8", proven=proven)).rung.barred is barred


def holding(key: str, memory: int, used: float, state: State = State.WARM, spared: bool = False) -> Holding[str]:
    return Holding(key, memory, used, state, spared)


HELD = (holding("new", 30, 9), holding("old", 30, 1), holding("active", 30, 0, State.ACTIVE), holding("reference", 5, 0, spared=True))


@pytest.mark.parametrize(
    ("need", "budget", "room"),
    [
        (5, 100, Room()),
        (6, 100, Room(("old",))),
        (35, 100, Room(("old",))),
        (65, 100, Room(("old", "new"))),
        (66, 100, Room(short=1)),  # nothing is evicted in vain
        (0, 0, Room(short=35)),
    ],
)
def test_what_was_used_longest_ago_goes_first(need: int, budget: int, room: Room[str]) -> None:
    assert make_room(HELD, need, budget) == room


def test_sizes_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="got need -1"):
        make_room((), -1, 0)


holdings = st.lists(st.builds(holding, st.uuids().map(str), st.integers(0, 50), st.floats(0, 9), st.sampled_from(State), st.booleans()))


@given(holdings, st.integers(0, 100), st.integers(0, 300))
def test_what_fits_fits_and_only_the_idle_pay(held: list[Holding[str]], need: int, budget: int) -> None:
    room = make_room(held, need, budget)
    by_key = {holding.key: holding for holding in held}
    assert all(by_key[key].state is State.WARM and not by_key[key].spared for key in room.evict)
    left = sum(holding.memory for holding in held if holding.state in RESIDENT and holding.key not in room.evict)
    assert (left + need <= budget) == (room.short == 0)
    if room.evict:  # not one more than needed
        assert left + by_key[room.evict[-1]].memory + need > budget


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_whatever_happens_it_is_what_the_table_says(events: list[Event]) -> None:
    variant = Variant("int8")
    for now, event in enumerate(events):
        before = variant.state
        if (before, event) in TABLE:
            assert variant.step(event, float(now)) is TABLE[before, event]
        else:
            with pytest.raises(ValueError, match=f"variant int8 is {before}"):
                variant.step(event, float(now))
            assert variant.state is before


def test_the_diagram_has_every_line_of_the_table() -> None:
    drawn = diagram()
    for (state, event), then in TABLE.items():
        assert (f"    {state} --> {then}: {event.value}" in drawn) is (event is not Event.WITHDRAW)
