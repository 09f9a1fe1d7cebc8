"""Which requests are traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Denied, InvalidRequest, Unsupported
from server.tracing.settings import TraceSettings

TRACE, SPAN = "ab" * 16, "cd" * 8
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


def settings(sample: float = 1.0) -> TraceSettings:
    def name_file(name: str) -> Path:
        if name == "forbidden":
            raise Denied("no")
        return Path("folder") / name

    return TraceSettings(sample, name_file)


def test_nothing_is_traced_by_default() -> None:
    off = settings(0.0)
    assert not off.active
    assert off.choose("m", SAMPLED) is None
    assert off.read() == {"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_file": ""}


def test_the_parent_decides() -> None:
    made = settings(sample=0.001)
    chosen = made.choose("m", SAMPLED)
    assert chosen is not None
    assert (chosen.trace_id, chosen.parent_id) == (TRACE, SPAN)
    made.change({"trace_rate": "1"})
    assert made.choose("m", UNSAMPLED) is None


@pytest.mark.parametrize(
    "traceparent",
    [
        *("", "junk", TRACE, f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
        *(f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-0g", "00-" + "é" * 52),
    ],
)
def test_what_is_no_traceparent_begins_a_trace(traceparent: str) -> None:
    chosen = settings().choose("m", traceparent)
    assert chosen is not None
    assert (len(chosen.trace_id), chosen.parent_id) == (32, "")
    assert chosen.trace_id != TRACE


def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known() -> None:
    chosen = settings().choose("m", f"01-{TRACE}-{SPAN}-03-more")
    assert chosen is not None
    assert chosen.parent_id == SPAN


def test_one_in_so_many_is_traced() -> None:
    made = settings(sample=0.1)
    assert made.read()["trace_rate"] == "10"
    count = sum(made.choose("m", "") is not None for _ in range(20_000))
    assert 1_700 < count < 2_300  # six standard deviations


def test_so_many_are_traced_and_no_more() -> None:
    made = settings()
    made.change({"trace_count": "3"})
    assert sum(made.choose("m", "") is not None for _ in range(10)) == 3
    made.change({"trace_count": 2})
    assert sum(made.choose("m", "") is not None for _ in range(10)) == 2
    made.change({"trace_count": None})
    assert made.read()["trace_count"] == "-1"
    assert made.choose("m", "") is not None


def test_a_model_has_what_it_does_not_override_from_all() -> None:
    made = settings(0.0)
    made.change({"trace_rate": "7", "trace_level": ["TIMESTAMPS"]})
    made.change({"trace_rate": "1"}, "m")
    assert (made.read("m")["trace_rate"], made.read("m")["trace_level"], made.read("other")["trace_rate"]) == ("1", ["TIMESTAMPS"], "7")
    made.change({"trace_level": ["OFF"]})
    assert made.read("m")["trace_level"] == ["OFF"]
    assert not made.active
    made.change({"trace_level": ["TIMESTAMPS"]}, "m")
    assert made.active
    assert made.choose("m", "") is not None
    assert made.choose("other", "") is None
    made.change({"trace_level": None, "trace_rate": None}, "m")
    assert made.read("m") == made.read()


def test_files() -> None:
    made = settings()
    made.change({"trace_file": "a.jsonl", "log_frequency": "5", "unknown": "passed over"})
    chosen = made.choose("m", "")
    assert chosen is not None
    assert (chosen.rule.file, chosen.rule.frequency) == (Path("folder/a.jsonl"), 5)


@pytest.mark.parametrize(
    ("wish", "kind", "text"),
    [
        ({"trace_level": ["TENSORS"]}, Unsupported, "recording.tensors"),
        ({"trace_level": ["LOUD"]}, InvalidRequest, "expected OFF or TIMESTAMPS, got 'LOUD'"),
        ({"trace_level": []}, InvalidRequest, "expected a list"),
        ({"trace_level": 7}, InvalidRequest, "expected a list"),
        ({"trace_rate": "0"}, InvalidRequest, "expected a number from 1"),
        ({"trace_rate": "often"}, InvalidRequest, "got 'often'"),
        ({"trace_rate": ["1", "2"]}, InvalidRequest, "expected a number"),
        ({"trace_count": "-2"}, InvalidRequest, "expected a number from -1"),
        ({"trace_count": "9" * 40}, InvalidRequest, "expected a number"),
        ({"log_frequency": 1.5}, InvalidRequest, "expected a number from 0"),
        ({"trace_file": 3}, InvalidRequest, "expected text"),
        ({"trace_file": "forbidden"}, Denied, "no"),
    ],
)
def test_a_wrong_value_changes_nothing(wish: dict[str, Any], kind: type[Exception], text: str) -> None:
    made = settings()
    before = made.read()
    with pytest.raises(kind, match=text):
        made.change({"trace_rate": "3", **wish} if "trace_rate" not in wish else {"trace_count": "3", **wish})
    assert made.read() == before


@given(st.text(max_size=80))
def test_any_header_is_survived(traceparent: str) -> None:
    chosen = settings().choose("m", traceparent)
    assert chosen is not None
    assert len(chosen.trace_id) == 32
