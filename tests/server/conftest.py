"""What tests of several parts of the server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.lanes.scripted import declare


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that does what its input says, declared by a package on the path, for child processes too."""
    monkeypatch.syspath_prepend(str(declare(tmp_path / "site")))
    return "scripted"
