import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messages import BatchFacts, ModelKey
from server.metrics.catalogue import CATALOGUE, LENGTHS, MODEL_LABELS, PADDING, PHASE_SECONDS, REQUEST_SECONDS, ROWS
from server.metrics.figures import MAX_LANES, OTHER, Figures
from server.metrics.recorder import MAX_KEYS, MAX_TENANTS, Recorder

KEY = ModelKey("digits", "1", "fp32")


def labels(key: ModelKey) -> dict[str, str]:
    return dict(zip(MODEL_LABELS, key, strict=True))


def facts(rows: int = 8, requests: int = 4, reason: str = "idle", lane: str = "digits/1/0") -> BatchFacts:
    return BatchFacts(rows, requests, reason, "fp32", lane, cut=1.0, started=1.5, finished=2.0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_each_answer_falls_into_one_bucket(seconds: list[float]) -> None:
    figures = Figures(KEY)
    for value in seconds:
        figures.answered(value, value, value, value)
    assert figures.duration[-1] == pytest.approx(sum(seconds))
    for counts, bounds in ((figures.duration, REQUEST_SECONDS), (figures.queue, PHASE_SECONDS), (figures.decode, PHASE_SECONDS)):
        assert sum(counts[:-1]) == len(seconds)
        for index, bound in enumerate(bounds):
            assert sum(counts[: index + 1]) == sum(value <= bound for value in seconds)


def test_a_bound_belongs_to_its_bucket() -> None:
    figures = Figures(KEY)
    figures.answered(0.2, 0.0, 0.0, 0.0)
    assert figures.duration[bisect_left(REQUEST_SECONDS, 0.2)] == 1


def test_a_batchs_phases_count_for_each_of_its_requests() -> None:
    figures = Figures(KEY)
    figures.batch(facts(), 0.01, 0.02)
    for counts, seconds in ((figures.gather, 0.01), (figures.compute, 0.5), (figures.scatter, 0.02)):
        assert sum(counts[:-1]) == 4
        assert counts[-1] == pytest.approx(4 * seconds)
    assert (figures.rows[bisect_left(ROWS, 8)], figures.rows[-1]) == (1, 8)
    figures.batch(facts(reason="full"), 0.01, 0.02)
    figures.batch(facts(lane="digits/1/1"), 0.01, 0.02)
    assert figures.batches == {"idle": 2, "full": 1}
    assert figures.lanes == {"digits/1/0": 1.0, "digits/1/1": 0.5}


def test_only_padded_batches_count_as_such() -> None:
    figures = Figures(KEY)
    figures.batch(facts(), 0.0, 0.0)
    assert not any(figures.length + figures.padding)
    padded = facts()
    padded.length, padded.padding = 48, 0.3
    figures.batch(padded, 0.0, 0.0)
    assert (figures.length[bisect_left(LENGTHS, 48)], figures.length[-1]) == (1, 48)
    assert (figures.padding[bisect_left(PADDING, 0.3)], figures.padding[-1]) == (1, 0.3)


def test_tenants_are_bounded() -> None:
    recorder = Recorder()
    for number in range(2 * MAX_TENANTS):
        recorder.tenant(f"t{number}")
        recorder.tenant(f"t{number}", "overloaded")
    recorder.tenant("t0", "made up")
    tenants = recorder.tenants()
    assert tenants["t0"] == {"success": 1, "rejected": 1, "failed": 1}
    assert tenants["other"] == {"success": MAX_TENANTS, "rejected": MAX_TENANTS}
    assert len(tenants) == MAX_TENANTS + 1


def test_lanes_are_bounded() -> None:
    figures = Figures(KEY)
    for index in range(50):
        figures.batch(facts(lane=f"lane {index}"), 0.0, 0.0)
    assert len(figures.lanes) == MAX_LANES
    assert sum(figures.lanes.values()) == 25.0
    assert figures.batches == {"idle": 50}


def test_failures_are_counted_by_known_reasons() -> None:
    recorder = Recorder()
    figures = recorder.figures(KEY)
    for reason in ("overloaded", "overloaded", "made up by a plug-in", "internal"):
        figures.failed(reason)
        recorder.unrouted(reason)
    for failures in (figures.failures, recorder.snapshot()[1]):
        assert {reason: count for reason, count in failures.items() if count} == {"overloaded": 2, "internal": 2}


def test_figures_are_kept_until_closed() -> None:
    recorder = Recorder()
    assert recorder.figures(KEY) is recorder.figures(KEY)
    recorder.gauge("tidegate_queue_rows", {"model": "digits", "version": "1"}, lambda: 1.0)
    recorder.gauge("tidegate_queue_rows", {"model": "digits", "version": "2"}, lambda: 2.0)
    recorder.gauge("tidegate_model_ready", labels(KEY), lambda: 1.0)
    recorder.gauge("tidegate_connections", {}, lambda: 1.0)
    recorder.gauge("tidegate_cache_lookups_total", {"model": "digits", "version": "1", "result": "hit"}, lambda: 1.0)
    recorder.gauge("tidegate_lane_restarts_total", {**labels(KEY), "reason": "died"}, lambda: 1.0)
    recorder.close(KEY)
    assert recorder.snapshot()[0] == []
    assert {(name, *shown) for name, shown, _ in recorder.read(CATALOGUE)} == {
        ("tidegate_queue_rows", "digits", "2"),
        ("tidegate_connections",),
    }


def test_models_beyond_the_bound_share_figures() -> None:
    recorder = Recorder()
    keys = [ModelKey(f"m{index}", "1", "fp32") for index in range(MAX_KEYS + 10)]
    for key in keys:
        recorder.figures(key).failed("invalid")
        recorder.gauge("tidegate_model_ready", labels(key), lambda: 1.0)
    figures, _ = recorder.snapshot()
    assert len(figures) == MAX_KEYS + 1
    assert (figures[-1].key, figures[-1].failures["invalid"]) == (OTHER, 10)
    assert len(list(recorder.read(CATALOGUE))) == MAX_KEYS
    recorder.close(keys[0])
    assert recorder.figures(keys[-1]).key == keys[-1]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tidegate_made_up", {}),
        ("tidegate_queue_rows", {}),
        ("tidegate_queue_rows", {"model": "m", "version": "1", "user": "x"}),
        ("tidegate_batch_rows", {"model": "m", "version": "1", "precision": "fp32"}),
    ],
)
def test_gauges_outside_the_catalogue_are_refused(name: str, given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="isn't a gauge or counter of the catalogue"):
        Recorder().gauge(name, given, lambda: 0.0)


def test_a_reader_in_another_thread_sees_whole_numbers() -> None:
    recorder = Recorder()
    figures = recorder.figures(KEY)
    seen: list[int] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            (each,), _ = recorder.snapshot()
            counts = each.duration.copy()
            seen.append(int(sum(counts[:-1])))

    reader = threading.Thread(target=scrape)
    reader.start()
    for index in range(50_000):
        figures.answered(0.001, 0.0, 0.0, 0.0)
        if index % 100 == 0:
            figures.batch(facts(reason=f"reason {index % 7}"), 0.0, 0.0)
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert sum(figures.duration[:-1]) == 50_000
