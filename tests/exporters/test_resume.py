"""Finished steps are used again by the hash of what they came from; what ends in the middle leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.package import write_entry
from exporters.pipeline import export
from exporters.resume import Finished
from server.repository.manifest import Manifest, read_manifest
from tests.exporters.conftest import Remembers, plan
from tests.exporters.test_cli import environment
from tests.server.models import linear_model, place_with_manifest

REUSED = "this model was traced before"


def test_an_export_is_run_again(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = plan(user, "Cnn", "image.npz", precisions=("fp32", "int8"), resume=True)
    first, second, third = Remembers(), Remembers(), Remembers()
    hashes = [[variant.sha256 for variant in export(asked, reporter).manifest.variants] for reporter in (first, second)]
    assert hashes[0] == hashes[1]
    assert [any(note.startswith(REUSED) for note in reporter.notes) for reporter in (first, second)] == [False, True]
    assert len(list((tmp_path / "cache" / "tidegate" / "export").iterdir())) == 3
    with (user / "nets.py").open("a") as code:
        code.write("# changed")
    export(asked, third)
    assert not any(note.startswith(REUSED) for note in third.notes)


def test_a_file_is_made_once(tmp_path: Path) -> None:
    finished, source, target = Finished(tmp_path / "kept"), tmp_path / "a", tmp_path / "b"
    source.write_text("one")
    made: list[str] = []

    def make() -> None:
        made.append(source.read_text())
        target.write_text(f"from {source.read_text()}")

    assert [finished.file(target, source, ("means",), make) for _ in range(2)] == [False, True]
    assert target.read_text() == "from one"
    assert not finished.file(target, source, ("others",), make)
    source.write_text("two")
    assert not finished.file(target, source, ("means",), make)
    assert made == ["one", "one", "two"]
    assert [Finished(None).file(target, source, ("means",), make) for _ in range(2)] == [False, False]


def test_what_can_not_be_kept_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    (tmp_path / "a").write_text("one")
    assert not Finished(tmp_path / "kept").file(tmp_path / "b", tmp_path / "a", (), lambda: None)
    Finished(tmp_path / "other").keep("", {})
    assert not (tmp_path / "other").exists()


class Interrupting(dict[str, Path]):
    """Files of which the second can't be had: Ctrl-C comes first."""

    def items(self) -> Any:
        def one() -> Iterator[tuple[str, Path]]:
            yield next(iter(super(Interrupting, self).items()))
            raise KeyboardInterrupt

        return one()


def test_ctrl_c_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    manifest: Manifest = read_manifest(place_with_manifest(tmp_path / "other", "net") / "1" / "manifest.json")
    with pytest.raises(KeyboardInterrupt):
        write_entry(tmp_path / "models", "net", None, Interrupting(a=linear_model(tmp_path / "m.onnx")), manifest)
    assert not (tmp_path / "models").exists()


def test_a_disk_that_is_full_leaves_nothing(user: Path, tmp_path: Path) -> None:
    """The limit lets small files be written and no large one: as a disk that fills up while the weights are written."""
    np.savez(user / "rows.npz", x=np.zeros((2, 512), np.float32))
    (user / "wide.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(512, 512)\n")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); from exporters.cli import app; app()"
    command = [
        sys.executable,
        "-P",
        "-c",
        limited,
        "--model",
        "wide.py:make",
        "--example",
        "rows.npz",
        "--repository",
        "models",
        "--name",
        "net",
    ]
    done = subprocess.run(command, cwd=user, env=environment(tmp_path / "tmp"), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") or "error: " in done.stderr
    assert not (user / "models").exists()
    assert not list((tmp_path / "tmp").glob("tidegate-*"))
    assert not os.listdir(tmp_path / "tmp")
