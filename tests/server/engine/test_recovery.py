"""What follows from a lost lane, without lanes: who is blamed, who is answered, how long is waited."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.recovery import (
    CALM,
    FIRST_DELAY,
    LONGEST_DELAY,
    MOST_DEATHS,
    MOST_REFUSED,
    REFUSED_FOR,
    TABLE,
    Backoff,
    Case,
    Docket,
    Refusals,
    Stage,
    Step,
    diagram,
    fingerprint,
)
from server.tensors import Tensor


class Court:
    """Runs cases as a supervisor does, in lanes that die of `killers`, and writes down how each member fared."""

    def __init__(self, killers: set[int]) -> None:
        self.killers = killers
        self.answered: list[int] = []
        self.blamed: list[int] = []
        self.failed: list[int] = []
        self.deaths = 0

    def try_batch(self, members: list[int]) -> Court:
        docket: Docket[int] = Docket()
        case: Case[int] | None = Case(members)
        while case is not None:
            retry = self._run(docket, case)
            case = retry or docket.next()
        assert not len(docket)
        return self

    def _run(self, docket: Docket[int], case: Case[int]) -> Case[int] | None:
        if not self.killers & set(case.members):
            self.answered += case.members
            docket.answered(case)
            return None
        self.deaths += 1
        verdict = docket.lost(case)
        self.blamed += verdict.blamed
        self.failed += verdict.failed
        return verdict.retry


@given(st.integers(1, 300), st.data())
def test_one_killer_is_found_and_nobody_else_is_harmed(size: int, data: st.DataObject) -> None:
    killer = data.draw(st.integers(0, size - 1))
    court = Court({killer}).try_batch(list(range(size)))
    assert court.blamed == [killer]
    assert sorted(court.answered) == [member for member in range(size) if member != killer]
    assert court.failed == []
    assert court.deaths <= 3 + (size - 1).bit_length()


@given(st.integers(1, 64), st.sets(st.integers(0, 63), min_size=1))
def test_everybody_gets_one_answer_whoever_kills(size: int, killers: set[int]) -> None:
    court = Court(killers).try_batch(list(range(size)))
    assert sorted(court.answered + court.blamed + court.failed) == list(range(size))
    assert set(court.blamed) <= killers
    assert not set(court.answered) & killers
    assert court.deaths <= MOST_DEATHS
    if court.deaths < MOST_DEATHS:
        assert court.failed == []


def test_a_batch_that_always_kills_is_given_up() -> None:
    court = Court(set(range(1000))).try_batch(list(range(1000)))
    assert court.deaths == MOST_DEATHS
    assert len(court.failed) > 900


def test_a_batch_that_is_answered_when_tried_again_is_nobodys_fault() -> None:
    docket: Docket[int] = Docket()
    retry = docket.lost(Case([1, 2])).retry
    assert retry is not None
    docket.answered(retry)
    assert docket.next() is None


def test_the_table_covers_every_stage_and_ends() -> None:
    assert TABLE.keys() == {(stage, alone) for stage in Stage for alone in (False, True)}
    order = [Stage.SERVING, Stage.RETRY, Stage.QUARANTINE]
    for (stage, alone), (step, following) in TABLE.items():
        forward = following is None or order.index(following) > order.index(stage)
        assert forward or step is Step.BISECT, "only a batch that gets smaller may stay where it is"
        assert (step is Step.BLAME) == (following is None)
        assert alone or step is not Step.BLAME


def test_the_diagram_has_every_line_of_the_table() -> None:
    assert diagram().count("lost") == len(TABLE)
    assert diagram().startswith("stateDiagram-v2")


def test_waits_grow_from_none_to_the_longest() -> None:
    backoff = Backoff()
    waits = [backoff.lost(0.0) for _ in range(12)]
    assert waits[:4] == [0.0, FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_DELAY
    assert backoff.lost(CALM) == 0.0
    backoff.lost(0.0)
    backoff.explained()
    assert backoff.lost(0.0) == 0.0


def test_what_killed_is_refused_for_a_while() -> None:
    refusals = Refusals()
    bad, good = {"x": np.zeros(3)}, {"x": np.ones(3)}
    refusals.add(fingerprint(bad), 100.0)
    assert refusals.left(bad, 100.0 + REFUSED_FOR / 2) == REFUSED_FOR / 2
    assert refusals.left(good, 101.0) == 0.0
    assert refusals.left(bad, 100.0 + REFUSED_FOR) == 0.0
    assert len(refusals) == 0


def test_only_so_many_are_refused() -> None:
    refusals = Refusals()
    for number in range(MOST_REFUSED + 1):
        refusals.add(fingerprint({"x": np.array(number)}), float(number))
    assert len(refusals) == MOST_REFUSED
    assert refusals.left({"x": np.array(0)}, 1.0) == 0.0
    assert refusals.left({"x": np.array(1)}, 1.0) == REFUSED_FOR


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32), "b": np.ones(1)},
        {"a": np.zeros((3, 2), np.int32)},
        {"b": np.zeros((3, 2), np.float32)},
        {"a": np.array([[b"x", b""]], object)},
    ],
)
def test_a_fingerprint_tells_inputs_apart(other: dict[str, Tensor]) -> None:
    one = {"a": np.zeros((3, 2), np.float32)}
    assert fingerprint(one) == fingerprint({"a": np.zeros((3, 4), np.float32)[:, ::2]})
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint({**other, "c": np.ones(2)}) == fingerprint({"c": np.ones(2), **other})
