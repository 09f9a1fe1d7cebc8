"""Prometheus' text format and the notation of rule tests."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.alerts import labels_of
from monitor.series.notation import Mark, values
from monitor.series.text import MAX_LINES, Exposition, Unreadable, series_named

TARGET = {"instance": "i", "job": "j"}
PAGE = """\
# HELP x help
# TYPE x counter
x_total{model="a b",reason="say \\"no\\"\\n"} 3
x_total 4 1700000000000
x_bucket{le="+Inf"} +Inf
x_bucket{instance="own",} NaN

"""


def test_a_page() -> None:
    samples = Exposition(TARGET).read(PAGE)
    assert samples[0] == ("x_total", labels_of({**TARGET, "model": "a b", "reason": 'say "no"\n'}), 3.0)
    assert samples[1] == ("x_total", labels_of(TARGET), 4.0)
    assert samples[2] == ("x_bucket", labels_of({**TARGET, "le": "+Inf"}), math.inf)
    assert samples[3][1] == labels_of({**TARGET, "exported_instance": "own"})


def test_the_second_page_reads_as_the_first() -> None:
    reader = Exposition(TARGET, {"x_total"})
    first, second = reader.read(PAGE), reader.read(PAGE.replace(" 3\n", " 5\n"))
    assert [value for _, _, value in first] == [3.0, 4.0]
    assert [value for _, _, value in second] == [5.0, 4.0]


@pytest.mark.parametrize("line", ["{", 'x{a="b} 1', "x", "x{a=b} 1", "x one", 'x{a="' + "b" * 2000 + '"} 1', "x 1 2 3"])
def test_a_line_that_cannot_be_read_is_counted_and_costs_no_other(line: str) -> None:
    reader = Exposition(TARGET)
    assert [name for name, _, _ in reader.read(f"good 1\n{line}\nbetter 2\n")] == ["good", "better"]
    assert reader.unreadable == 1


def test_what_is_no_page_is_said() -> None:
    with pytest.raises(Unreadable, match="no line is in Prometheus' text format"):
        Exposition(TARGET).read("<html>\n<body>\n")
    with pytest.raises(Unreadable, match="more than"):
        Exposition(TARGET).read("x 1\n" * (MAX_LINES + 1))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(Unreadable):
        Exposition(TARGET).read(text)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(min_size=1, max_size=20), max_size=4))
def test_labels_read_back(labels: dict[str, str]) -> None:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    text = "x{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}"
    assert series_named(text) == ("x", labels_of(labels))


def test_notation() -> None:
    assert values("0+10x2 _x2 _ stale 7 -5 1-1x1 3x1") == [0, 10, 20, *[Mark.MISSING] * 3, Mark.STALE, 7, -5, 1, 0, 3, 3]


@pytest.mark.parametrize("text", ["a", "1+x3", "1x", "1x9999999", "_x9999999", "0+1"])
def test_notation_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a value|more than"):
        values(text)


def test_a_series_name_that_is_none() -> None:
    with pytest.raises(Unreadable, match="expected"):
        series_named('x{a="b"} 5')
