"""A small repository and a server on it, shared by the tests of the HTTP edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from server.app import App
from tests.server.models import identity_model, linear_model
from tests.server.running import Wire, running, wire


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """identity FP32 [N,16] and linear FP32 [N,8] → [N,4]."""
    root = tmp_path_factory.mktemp("repository")
    identity_model(root / "identity" / "1" / "model.onnx")
    identity_model(root / "wide" / "1" / "model.onnx", width="W")
    linear_model(root / "linear" / "1" / "model.onnx")
    return root


@pytest_asyncio.fixture
async def app(repository: Path) -> AsyncIterator[App]:
    async with running(repository) as served:
        yield served


@pytest_asyncio.fixture
async def connection(app: App) -> AsyncIterator[Wire]:
    async with wire(app) as one:
        yield one
