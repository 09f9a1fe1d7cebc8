import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest

from server.config import Recording as Settings
from server.errors import ConfigError
from server.messages import InferRequest, Layout
from server.recording import Arrival, Folder, Recording
from tests.server.models import identity_model, place
from tests.server.running import infer_json, running, wire

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/arrival.json").read_text())
X = np.arange(4, dtype=np.float32).reshape(1, 4)
TEXTS = np.array([[b"ab", b""]], object)
HALVES = np.array([[1.5]], ml_dtypes.bfloat16)


def request(**inputs: Any) -> InferRequest:
    arrays = inputs or {"x": X}
    return InferRequest("m", arrays, Layout(tuple((name, "FP32", array.shape) for name, array in arrays.items())), rows=1)


def event(t: float = 5.0, **changes: Any) -> tuple[Any, ...]:
    fields = {"model": "m", "version": "1", "rows": 1, "length": 1, "priority": 0, "tenant": "", "deadline": None, **changes}
    return (t, *fields.values())


@contextmanager
def recording(folder: Path, max_bytes: int = 1 << 20, **options: Any) -> Iterator[Recording]:
    """A recording that is closed, and so written, when the block ends."""
    made = Recording(Folder(folder, max_bytes), **{"sample": 1.0, "tensors": False, **options})
    try:
        yield made
    finally:
        made.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("arrivals-*.jsonl")) for line in path.read_text().splitlines()]


def test_arrivals_are_lines_of_the_schema(tmp_path: Path) -> None:
    with recording(tmp_path / "r") as made:
        made.arrived(event(5.0, rows=3, priority=1, tenant="a", deadline=0.05), request())
        made.arrived(event(5.25), request())
    head, first, second = lines(tmp_path / "r")
    assert (head["event"], head["schema"]) == ("recording", 1)
    assert (first["rows"], first["priority"], first["tenant"], first["deadline"]) == (3, 1, "a", 0.05)
    assert second["t"] - first["t"] == pytest.approx(0.25, abs=1e-5)
    for line in (first, second):
        jsonschema.validate(line, SCHEMA)
        assert Arrival.model_validate(line).model == "m"
    assert "tensors" not in first
    assert made.dropped == 0


def test_files_are_ours_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with recording(tmp_path / "r", tensors=True) as made:
            made.arrived(event(), request())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o700
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names == ["arrivals-00000002.jsonl", "tensors-00000001.npz"]
    assert {stat.S_IMODE((tmp_path / "r" / name).stat().st_mode) for name in names} == {0o600}


def test_sampled_tensors_come_back_without_pickle(tmp_path: Path) -> None:
    with recording(tmp_path / "r", tensors=True) as made:
        made.arrived(event(), request(**{"a/b": X, "text": TEXTS, "half": HALVES, "strided": X[:, ::2]}))
    _, line = lines(tmp_path / "r")
    jsonschema.validate(line, SCHEMA)
    assert [name for name, _, _ in line["inputs"]] == ["a/b", "text", "half", "strided"]
    with np.load(tmp_path / "r" / line["tensors"], allow_pickle=False) as arrays:
        assert np.array_equal(arrays["a%2Fb"], X)
        assert np.array_equal(arrays["strided"], X[:, ::2])
        assert arrays["text"].tobytes() == b"\2\0\0\0ab\0\0\0\0"
        assert np.array_equal(arrays["half"].view(ml_dtypes.bfloat16), HALVES)


def test_only_the_sample_is_kept(tmp_path: Path) -> None:
    draws = iter([0.5, 0.05, 0.2])
    with recording(tmp_path / "r", tensors=True, sample=0.1, draw=draws.__next__) as made:
        for t in (1.0, 2.0, 3.0):
            made.arrived(event(t), request())
    assert ["tensors" in line for line in lines(tmp_path / "r")[1:]] == [False, True, False]


def test_the_oldest_files_go_before_the_bound_is_passed(tmp_path: Path) -> None:
    limit = 64 << 10
    folder = Folder(tmp_path / "r", limit)
    for number in range(600):
        folder.append(b'{"line": %d, "pad": "%s"}\n' % (number, b"x" * 200))
        assert sum(path.stat().st_size for path in (tmp_path / "r").iterdir()) == folder.used <= limit
    folder.close()
    kept = [line["line"] for line in lines(tmp_path / "r") if "line" in line]
    assert kept == list(range(kept[0], 600))
    assert 200 < len(kept) < 600


def test_a_restart_goes_on_counting(tmp_path: Path) -> None:
    for _ in range(2):
        with recording(tmp_path / "r") as made:
            made.arrived(event(), request())
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["arrivals-00000001.jsonl", "arrivals-00000002.jsonl"]
    folder = Folder(tmp_path / "r", 1 << 20)
    assert folder.used == sum(path.stat().st_size for path in (tmp_path / "r").iterdir())
    folder.close()


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    with recording(tmp_path / "r", tensors=True, max_bytes=32 << 10) as made:
        made.arrived(event(), request(x=np.zeros(1 << 20, np.uint8)))
        made.arrived(event(6.0), request())
    _, large, small = lines(tmp_path / "r")
    assert "tensors" not in large
    assert "tensors" in small
    assert made.dropped == 1


def test_a_disk_that_fails_costs_records_not_requests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(tmp_path / "r", 1 << 20)
    (tmp_path / "r").rmdir()
    made = Recording(folder, sample=0, tensors=False)
    made.arrived(event(), request())
    made.close()
    assert made.dropped == 1
    assert "records are dropped" in caplog.text


@pytest.mark.parametrize(
    "why", ["mode 0755 lets others at it; expected 0700: chmod 700", "another server records there", "Not a directory"]
)
def test_a_folder_that_cannot_be_used(tmp_path: Path, why: str) -> None:
    folder = tmp_path / "r"
    taken = Folder(folder, 1 << 20) if why.startswith("another") else None
    if why.startswith("mode"):
        folder.mkdir(0o755)
        folder.chmod(0o755)
    elif taken is None:
        folder = tmp_path / "file" / "r"
        (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        Recording.from_settings(Settings(dir=folder))
    assert str(caught.value).startswith(f"recording.dir: {folder}: ")
    assert why in str(caught.value)
    if taken is not None:
        taken.close()


def test_without_a_folder_nothing_is_recorded() -> None:
    assert Recording.from_settings(Settings()) is None


async def test_a_server_records_what_reaches_a_model(tmp_path: Path) -> None:
    place(tmp_path / "models", "echo", lambda path: identity_model(path, width=4))
    settings = {"dir": tmp_path / "r", "tensors": True, "sample": "100%"}
    async with running(tmp_path / "models", recording=settings) as app, wire(app) as client:
        assert (await client.ask(infer_json("echo", X, parameters={"timeout": 2_000_000}))).status == 200
        assert (await client.ask(infer_json("echo", X[:, :2]))).status == 400
        assert (await client.ask(infer_json("other", X))).status == 404
    _, line = lines(tmp_path / "r")
    jsonschema.validate(line, SCHEMA)
    assert (line["model"], line["version"], line["rows"], line["deadline"]) == ("echo", "1", 1, 2.0)
    with np.load(tmp_path / "r" / line["tensors"]) as arrays:
        assert np.array_equal(arrays["x"], X)
