"""The ensemble of tokenizer and encoder: over a stand-in for MiniLM, and over the real one where it's built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples import fetch
from examples.prepare import REPOSITORY
from examples.sentences import check, embed, place
from tests.examples import standins
from tests.server.running import in_thread

REAL = Path(__file__).resolve().parents[2] / ".models" / fetch.MINILM / "tokenizer.json"


def test_sentences_over_the_stand_in(tmp_path: Path, fetched: Path) -> None:
    models = standins.repository(tmp_path / "models")
    place(tmp_path / "sentences", models / "minilm", fetched / fetch.MINILM / "tokenizer.json")
    with in_thread(tmp_path / "sentences") as app:
        check(embed(app.addresses.http))


@pytest.mark.skipif(not (REAL.is_file() and (REPOSITORY / "minilm").is_dir()), reason="`make demo` hasn't built MiniLM")
def test_sentences_over_the_real_one(tmp_path: Path) -> None:
    place(tmp_path / "sentences", REPOSITORY / "minilm", REAL)
    with in_thread(tmp_path / "sentences") as app:
        vectors = embed(app.addresses.http)
        likeness = check(vectors)
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]
