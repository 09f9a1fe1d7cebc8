"""A console that remembers, and servers with the demo's stand-ins."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from server.app import App
from tests.examples import standins
from tests.server.running import in_thread


@pytest.fixture
def said() -> io.StringIO:
    """What was printed to `console`."""
    return io.StringIO()


@pytest.fixture
def console(said: io.StringIO) -> Console:
    return Console(file=said, width=110, highlight=False)


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.fetched(tmp_path_factory.mktemp("fetched"))


@pytest.fixture(autouse=True)
def _reads_the_stand_ins(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_MODELS", str(fetched))


@pytest.fixture(scope="package")
def right(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A server whose answers are right."""
    with in_thread(standins.repository(tmp_path_factory.mktemp("right"))) as app:
        yield app


@pytest.fixture(scope="package")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A server whose answers are wrong."""
    with in_thread(standins.repository(tmp_path_factory.mktemp("wrong"), right=False)) as app:
        yield app
