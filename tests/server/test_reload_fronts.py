"""What stands before an engine over loads and unloads by request: no stale answer, no stale state, ensembles that follow their parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.metrics.catalogue import CATALOGUE
from tests.server.models import linear_model, place
from tests.server.running import http
from tests.server.test_control import act, answer_of, asked, explicit, index, write_anew
from tests.server.test_ensemble import place_ensemble
from tests.server.test_sequences import STATE, adder_model, told, x


async def test_no_answer_is_kept_over_a_reload(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", yaml="cache: {max_bytes: 1MiB}\n")
    async with explicit(tmp_path, "m") as (app, connection):
        for _ in range(2):
            assert await asked(connection) == (200, pytest.approx(answer_of(0), rel=1e-4))
        write_anew(entry / "1" / "model.onnx", seed=3)
        assert await act(connection, "load", "m") == (200, "")
        assert await asked(connection) == (200, pytest.approx(answer_of(3), rel=1e-4))
        assert await act(connection, "unload", "m") == (200, "")
        assert not [name for name, _, _ in app.recorder.read(CATALOGUE) if name.startswith("tidegate_cache")]


async def test_no_state_is_kept_over_a_reload(tmp_path: Path) -> None:
    entry = place(tmp_path, "adder", adder_model, yaml=STATE)
    async with explicit(tmp_path, "adder") as (_, connection):
        assert await told(connection, x(1), 7, start=True) == [1, 1]
        adder_model(entry / "1" / ".new").rename(entry / "1" / "model.onnx")
        (entry / "model.yaml").write_text(STATE + "description: anew\n")
        assert await act(connection, "load", "adder") == (200, "")
        assert "must specify the START flag" in str(await told(connection, x(1), 7))
        assert await told(connection, x(2), 7, start=True) == [2, 2]


async def test_an_ensemble_follows_its_parts(tmp_path: Path) -> None:
    part = place(tmp_path, "part", linear_model)
    place_ensemble(tmp_path, "whole", "ensemble: {steps: [{model: part, inputs: {x: x}, outputs: {y: y}}]}")
    async with explicit(tmp_path) as (_, connection):
        assert await act(connection, "load", "whole") == (200, "")  # and its part with it
        assert await asked(connection, "whole") == (200, pytest.approx(answer_of(0), rel=1e-4))
        write_anew(part / "1" / "model.onnx", seed=5)
        assert await act(connection, "load", "part") == (200, "")
        assert await asked(connection, "whole") == (200, pytest.approx(answer_of(5), rel=1e-4))
        assert await act(connection, "unload", "part") == (200, "")
        assert (await asked(connection, "whole"))[0] == 503
        assert (await index(connection))["whole", "1"][1].startswith("waits for its part, model 'part'")
        assert await act(connection, "load", "part") == (200, "")
        assert (await asked(connection, "whole"))[0] == 200
        assert await act(connection, "unload", "whole") == (200, "")
        assert (await asked(connection, "whole"))[0] == 503
        assert (await connection.ask(http("/v2/models/part/ready", method="GET"))).status == 200
