import json
import time

import pytest

from server.ring import FIELDS, KEPT, Ring, unix_offset


def noted(ring: Ring) -> list[dict[str, object]]:
    return [json.loads(line) for line in ring.lines("1.0")]


def test_events_come_out_in_order_of_time_under_a_head() -> None:
    ring = Ring()
    ring.batch((12.0, "m", "1", "fp32", 3, 2, 1, "idle", "m/1/fp32#0", 0.25))
    ring.routing((13.5, "m", "2", "ready"))
    ring.arrival((11.0, "m", "1", 2, 1, 0, "", None))
    ring.lane((13.0, "m/1/fp32#0", "died"))
    head, *events = noted(ring)
    assert (head["event"], head["schema"], head["server"], head["events"]) == ("incident", 1, "1.0", 4)
    assert [event["event"] for event in events] == ["arrival", "batch", "lane", "routing"]
    assert {key: events[1][key] for key in ("rows", "requests", "reason", "compute_s")} == {
        "rows": 3,
        "requests": 2,
        "reason": "idle",
        "compute_s": 0.25,
    }
    assert all(tuple(event)[:2] == ("t", "event") for event in events)
    first, last = (float(str(events[index]["t"])) for index in (0, -1))
    assert last - first == pytest.approx(2.5, abs=1e-5)


def test_times_are_unix_times() -> None:
    ring = Ring()
    before = time.time()
    ring.routing((time.monotonic(), "m", "1", "ready"))
    assert before - 1 < float(str(noted(ring)[1]["t"])) < time.time() + 1
    assert unix_offset() > 0


def test_only_the_last_are_kept_and_rare_kinds_are_not_pushed_out() -> None:
    ring = Ring({**KEPT, "arrival": 3})
    ring.lane((0.0, "lane", "died"))
    for number in range(10):
        ring.arrival((float(number), f"m{number}", "1", 1, 1, 0, "", None))
    assert [event.get("model") for event in noted(ring)[1:]] == [None, "m7", "m8", "m9"]


def test_long_texts_are_cut() -> None:
    ring = Ring()
    ring.routing((0.0, "m", "1", "x" * 1000))
    assert noted(ring)[1]["what"] == "x" * 256


def test_every_kind_is_bounded() -> None:
    assert KEPT.keys() == FIELDS.keys()
