"""The worst samples in files: bounded in number, gone after a while, without what is redacted, readable by their owner only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.messages import Layout
from server.precision.guard.record import Comparison
from server.precision.guard.sampling import Sample
from server.precision.guard.worst import MOST_SCORE, Worst

ROW = np.ones((1, 4), np.float32)


def keep(worst: Worst, score: float) -> Path | None:
    sample = Sample({"x": ROW, "secret": ROW}, {"y": ROW * 2}, Layout(()), "int8", 0.0, 48)
    return worst.keep(sample, {"y": ROW, "more": ROW}, Comparison(True, 0.5, score, None))


@given(st.lists(st.one_of(st.floats(0.0, 1e7), st.just(float("inf"))), max_size=30), st.integers(1, 5))
def test_the_worst_stay(tmp_path_factory: object, scores: list[float], most: int) -> None:
    folder = tmp_path_factory.mktemp("worst") / "net" / "1"  # type: ignore[attr-defined]
    worst = Worst(folder, most, 3600.0)
    for score in scores:
        keep(worst, score)
    names = sorted((path.name for path in folder.iterdir()), reverse=True) if folder.is_dir() else []
    wanted = sorted({f"{min(score, MOST_SCORE):014.6f}" for score in scores}, reverse=True)[:most]
    assert [name[:14] for name in names] == wanted
    assert worst.purge() == len(names)
    assert worst.purge() == 0


def test_redacted_inputs_are_never_written(tmp_path: Path) -> None:
    path = keep(Worst(tmp_path / "w", 2, 3600.0, ("secret",)), 1.0)
    assert path is not None
    with np.load(path) as found:
        assert set(found) == {"input%3Ax", "answer%3Ay", "fp32%3Ay"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_too_old_goes_and_what_is_another_s_stays(tmp_path: Path) -> None:
    worst = Worst(tmp_path, 2, 60.0)
    old = keep(worst, 5.0)
    assert old is not None
    os.utime(old, (0, 0))
    other = tmp_path / "notes.txt"
    other.write_text("not ours")
    worst.expire()
    assert not old.exists()
    assert keep(worst, 1.0) is not None
    assert worst.purge() == 1
    assert other.exists()
