from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.backends.latency_table import BUILT_IN, Curve, Noise, read_table
from server.commands.simulation.replay import FittedDevice, Outcome, Setting, TableDevice, highest_priority, replay
from server.engine.batcher import BatchPolicy
from server.recording import Arrival
from tests.server.commands.traces import arrival

LINE = Curve("d", "m", "fp32", (8e-3, 2e-3), (), Noise())


def near(*seconds: float) -> Any:
    """Times in a trace are whole microseconds, and large."""
    return pytest.approx(seconds, abs=1e-6)


def arrivals(times: Sequence[float], **changes: object) -> list[Arrival]:
    return [Arrival.model_validate(arrival(t, **changes)) for t in times]


def tried(times: Sequence[float], speed: float = 1.0, queue: int = 1024, curve: Curve = LINE, **policy: object) -> Outcome:
    setting = Setting("s", BatchPolicy(**policy), lambda: TableDevice(curve), queue, speed)  # type: ignore[arg-type]
    return replay(arrivals(times), setting)


def test_a_request_alone_takes_one_run() -> None:
    found = tried([0.0, 1.0])
    assert (found.requests, found.answered, found.in_time, found.batches, found.rows) == (2, 2, 2, 2, 2)
    assert found.latencies == near(10e-3, 10e-3)
    assert found.seconds == pytest.approx(1.01)
    assert found.busy == pytest.approx(20e-3)


def test_what_comes_at_once_shares_a_run_and_what_comes_meanwhile_the_next() -> None:
    found = tried([0.0, 0.0, 0.001, 0.002, 0.003])
    assert (found.batches, found.rows) == (2, 5)
    assert found.latencies == near(12e-3, 12e-3, 23e-3, 24e-3, 25e-3)


def test_rows_of_a_run_are_bounded() -> None:
    found = tried([0.0] * 5, max_rows=2)
    assert (found.batches, found.rows) == (3, 5)
    assert max(found.latencies) == pytest.approx(0.012 + 0.012 + 0.010)


def test_lanes_run_at_the_same_time() -> None:
    found = tried([0.0, 0.001], lanes=2)
    assert found.latencies == near(10e-3, 10e-3)
    assert found.figures()["utilisation"] == pytest.approx(20e-3 / (2 * 11e-3), rel=1e-4)


def test_speed_brings_the_arrivals_closer() -> None:
    assert tried([0.0, 0.02]).batches == tried([0.0, 0.02], speed=1.5).batches == 2
    assert max(tried([0.0, 0.02], speed=4).latencies) == pytest.approx(15e-3)


def test_the_queue_is_bounded() -> None:
    found = tried([0.0, 0.001, 0.001, 0.001], queue=2)
    assert (found.answered, found.dropped) == (3, {"queue_full": 1})


def test_a_request_larger_than_a_run_is_refused() -> None:
    setting = Setting("s", BatchPolicy(max_rows=4), lambda: TableDevice(LINE))
    found = replay(arrivals([0.0], rows=5), setting)
    assert (found.answered, found.dropped) == (0, {"too_large": 1})


def test_recorded_deadlines_are_kept_and_an_objective_takes_their_place() -> None:
    late = arrivals([0.0, 0.001], deadline=0.0125)
    as_recorded = replay(late, Setting("s", BatchPolicy(), lambda: TableDevice(LINE)))
    assert (as_recorded.in_time, sum(as_recorded.dropped.values())) == (1, 1)
    aimed = replay(late, Setting("s", BatchPolicy(latency_objective=0.0125), lambda: TableDevice(LINE)))
    assert (aimed.answered, aimed.in_time, sum(aimed.dropped.values())) == (2, 1, 0)
    held = replay(late, Setting("s", BatchPolicy(latency_objective=0.0125, on_late="reject"), lambda: TableDevice(LINE)))
    assert (held.answered, held.in_time, sum(held.dropped.values())) == (1, 1, 1)


def test_a_hold_ends_by_itself() -> None:
    found = tried([0.0, 0.004], max_wait=0.01)
    assert (found.batches, found.rows) == (1, 2)
    assert found.latencies == near(18e-3, 22e-3)
    assert found.reasons == {"hold": 1}


def test_what_was_learned_elsewhere_is_replayed() -> None:
    device = FittedDevice(5e-3, 1e-5, 1e-7, length=32)
    found = replay(arrivals([0.0], rows=2, length=100), Setting("s", BatchPolicy(), lambda: device))
    assert found.latencies == near(5e-3 + 200 * 1e-5 + 200 * 100 * 1e-7)
    assert device.warmup()[1] == pytest.approx(5e-3 + 32 * 1e-5 + 32 * 32 * 1e-7)


def test_figures_without_an_answer() -> None:
    figures = replay([], Setting("s", BatchPolicy(), lambda: TableDevice(LINE))).figures()
    assert (figures["requests"], figures["in_time_share"], figures["p50_ms"], figures["mean_rows"]) == (0, 0, None, 0)


def test_progress_ends_with_all() -> None:
    seen: list[int] = []
    replay(arrivals([t / 100 for t in range(600)]), Setting("s", BatchPolicy(), lambda: TableDevice(LINE)), seen.append)
    assert seen == [0, 256, 512, 600]


def test_priorities_of_a_trace() -> None:
    assert highest_priority([]) == highest_priority(arrivals([0.0])) == 1
    assert highest_priority([*arrivals([0.0], priority=3), *arrivals([0.0])]) == 3


policies: st.SearchStrategy[Mapping[str, object]] = st.fixed_dictionaries(
    {
        "max_rows": st.sampled_from([1, 3, 16]),
        "lanes": st.integers(1, 3),
        "latency_objective": st.sampled_from([None, 0.012, 0.05]),
        "on_late": st.sampled_from(["reject", "serve"]),
        "max_wait": st.sampled_from([None, 0.005]),
        "priorities": st.just(2),
    }
)
one = st.tuples(st.floats(0, 0.3), st.integers(1, 4), st.integers(0, 2), st.sampled_from([None, 0.0, 0.02, 0.1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(one, max_size=60), policies)
def test_every_arrival_ends_once(load: list[tuple[float, int, int, float | None]], policy: Mapping[str, object]) -> None:
    trace = [
        Arrival.model_validate(arrival(t, rows=rows, priority=priority, deadline=limit))
        for t, rows, priority, limit in sorted(load, key=lambda a: a[0])
    ]
    curve = read_table(BUILT_IN["t4"]).curve("resnet50", "fp32")
    setting = Setting("s", BatchPolicy(**policy), lambda: TableDevice(curve), 20)  # type: ignore[arg-type]
    found = replay(trace, setting)
    assert found.requests == len(trace) == found.answered + sum(found.dropped.values())
    assert found.in_time <= found.answered == len(found.latencies)
    assert found.rows <= sum(each.rows for each in trace)
    assert found.busy <= found.seconds * found.lanes + 1e-9
    assert replay(trace, setting).figures() == found.figures()
