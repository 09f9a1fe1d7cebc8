import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.units import duration, ratio, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5ms", 0.005),
        ("250us", 250e-6),
        ("250µs", 250e-6),
        ("1.5s", 1.5),
        (" 2 m ", 120.0),
        ("1h", 3600.0),
        (3, 3.0),
        (0.5, 0.5),
        ("7", 7.0),
    ],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 64 << 20),
        ("256KiB", 256 << 10),
        ("1GiB", 1 << 30),
        ("1.5KiB", 1536),
        ("10MB", 10_000_000),
        ("4Gi", 4 << 30),
        (1024, 1024),
    ],
)
def test_sizes_are_bytes(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (1, 1.0), (0.0, 0.0), ("100%", 1.0)])
def test_ratios_are_shares(text: object, share: float) -> None:
    assert ratio(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "5 parsecs", "1e3s", "1s2", True, None, [], math.nan, math.inf, -1, "9" * 100])
def test_what_is_no_duration_says_what_is(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        duration(text)


@pytest.mark.parametrize("text", ["1.5", "0.3KiB", "64mib", "5ms", -1, 1.5, True, None])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a"):
        size(text)


@pytest.mark.parametrize("text", ["101%", 1.01, "5ms", "-1%", True, None])
def test_what_is_no_ratio_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        ratio(text)


@given(st.one_of(st.text(), st.integers(), st.floats()))
def test_nothing_but_value_errors_comes_out(value: object) -> None:
    for read in (duration, size, ratio):
        with contextlib.suppress(ValueError):
            assert read(value) >= 0
