"""`tidegate weights` against a running server: what it prints, and what it says of what it can't do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.commands.routing.weights import app
from tests.server.models import place_versions
from tests.server.running import in_thread

RUN = CliRunner()


@pytest.fixture
def url(tmp_path: Path) -> object:
    place_versions(tmp_path, "m", [1, 2], 'versions: {policy: all}\nrouting: {weights: {"1": 100}}\n')
    with in_thread(tmp_path) as served:
        yield f"http://{served.addresses.http}"


def test_weights_are_shown_set_and_cleared(url: str) -> None:
    assert "by model.yaml" in RUN.invoke(app, ["show", "m", "--url", url]).stdout
    set_ = RUN.invoke(app, ["set", "m", "1=90", "2=10%", "--url", url])
    assert set_.exit_code == 0, set_.stdout
    assert "by the admin API" in set_.stdout
    assert "model.yaml says 1: 100 %" in set_.stdout
    assert '"chosen":{"1":90.0,"2":10.0}' in RUN.invoke(app, ["show", "m", "--json", "--url", url]).stdout
    assert "by model.yaml" in RUN.invoke(app, ["clear", "m", "--url", url]).stdout


def test_what_is_wrong_is_said(url: str) -> None:
    assert "VERSION=PERCENT" in RUN.invoke(app, ["set", "m", "1:90", "--url", url]).output
    refused = RUN.invoke(app, ["set", "m", "1=90", "--url", url])
    assert "add up to 100, got 90 = 90" in str(refused.exception)
    assert "status 404" in str(RUN.invoke(app, ["show", "other", "--url", url]).exception)
