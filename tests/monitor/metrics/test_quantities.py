"""Thresholds with their units: read, refused, and shown again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.metrics.quantities import Unit, parse, show

RIGHT = [
    ("200ms", Unit.SECONDS, 0.2),
    ("250us", Unit.SECONDS, 250e-6),
    ("2m", Unit.SECONDS, 120),
    ("1h", Unit.SECONDS, 3600),
    ("90%", Unit.RATIO, 0.9),
    ("99.9%", Unit.RATIO, 0.999),
    (0.5, Unit.RATIO, 0.5),
    ("120%", Unit.RATIO, 1.2),
    ("14GiB", Unit.BYTES, 14 * 2**30),
    ("1TiB", Unit.BYTES, 2**40),
    ("100/s", Unit.RATE, 100),
    ("60/m", Unit.RATE, 1),
    (100, Unit.RATE, 100),
    ("85°C", Unit.CELSIUS, 85),
    ("70W", Unit.WATTS, 70),
    (5, Unit.COUNT, 5),
    ("-3", Unit.COUNT, -3),
    (0, Unit.SECONDS, 0),
]


@pytest.mark.parametrize(("text", "unit", "value"), RIGHT)
def test_read(text: object, unit: Unit, value: float) -> None:
    assert parse(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (200, Unit.SECONDS),
        (90, Unit.RATIO),
        (1024, Unit.BYTES),
        ("200ms", Unit.RATIO),
        ("90%", Unit.SECONDS),
        ("5 apples", Unit.COUNT),
        ("", Unit.COUNT),
        (True, Unit.COUNT),
        (None, Unit.COUNT),
        ([1], Unit.COUNT),
        ("1e999", Unit.COUNT),
        ("9" * 100, Unit.COUNT),
    ],
)
def test_refused(text: object, unit: Unit) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse(text, unit)


@given(st.floats(1e-5, 1e6), st.sampled_from([Unit.SECONDS, Unit.RATIO, Unit.BYTES, Unit.RATE, Unit.CELSIUS, Unit.WATTS, Unit.COUNT]))
def test_what_is_shown_reads_back(value: float, unit: Unit) -> None:
    assert parse(show(value, unit), unit) == pytest.approx(value, rel=1e-3)
