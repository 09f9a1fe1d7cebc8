"""When the demo makes a model anew, and what it makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.models import digits
from examples.prepare import ROOT, Example, _hash, _holds, demo_models
from server.repository.configs.reading import read_model_config


@pytest.mark.parametrize("example", demo_models(), ids=lambda example: example.name)
def test_each_model(example: Example, tmp_path: Path) -> None:
    assert example.source.is_file()
    assert "\ndef build(" in example.source.read_text()
    (tmp_path / "model.yaml").write_text(example.model_yaml)
    assert read_model_config(tmp_path).description
    for flag, path in zip(example.flags[::2], example.flags[1::2], strict=True):
        assert flag == "--weights"
        assert ROOT / path in example.weights


def test_a_stamp_knows_names_contents_and_flags(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text("same")
    seen = {_hash([one]), _hash([other]), _hash([one], "flag"), _hash([one, other]), _hash([other, one])}
    assert len(seen) == 5
    before = _hash([one])
    assert _hash([one]) == before
    one.write_text("changed")
    assert _hash([one]) != before


def test_a_stamp_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    stamp = tmp_path / "stamp"
    assert not _holds(stamp, "")
    stamp.write_text("a")
    assert _holds(stamp, "a")
    assert not _holds(stamp, "b")


def test_the_digits_are_split_the_same_way_every_time() -> None:
    one, other = digits.data(), digits.data()
    assert (len(one.train_images), len(one.test_images)) == (1257, 540)
    np.testing.assert_array_equal(one.train_images, other.train_images)
    np.testing.assert_array_equal(one.test_labels, other.test_labels)
    assert one.test_images.shape[1:] == (1, 8, 8)
    assert (one.test_images.min(), one.test_images.max()) == (0, 16)
