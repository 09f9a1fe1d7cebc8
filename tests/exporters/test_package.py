"""An entry is there as a whole or not at all."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporters.package import check_targets, manifest_path, next_version, write_entry, write_output
from exporters.plan import ExportError
from server.repository.manifest import Manifest, file_sha256, read_manifest
from tests.server.models import linear_model, place_with_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return linear_model(tmp_path / "work" / "x.onnx")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(place_with_manifest(tmp_path / "other", "net") / "1" / "manifest.json")


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


def test_versions_count_on(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    repository = tmp_path / "deep" / "models"
    files = {"model.fp32.onnx": model}
    assert write_entry(repository, "net", None, files, manifest) == repository / "net" / "1"
    assert write_entry(repository, "net", 7, files, manifest) == repository / "net" / "7"
    assert write_entry(repository, "net", None, files, manifest) == repository / "net" / "8"
    assert listing(repository / "net" / "8") == {"model.fp32.onnx", "manifest.json"}
    assert read_manifest(repository / "net" / "8" / "manifest.json") == manifest
    assert file_sha256(repository / "net" / "8" / "model.fp32.onnx") == file_sha256(model)
    assert not [name for name in listing(repository) if "partial" in name]


def test_exports_at_once_get_versions_of_their_own(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(write_entry, tmp_path / "models", "net", None, {"m.onnx": model}, manifest) for _ in range(16)]
        entries = {future.result() for future in waiting}
    assert {entry.name for entry in entries} == {str(version) for version in range(1, 17)}
    assert all(listing(entry) == {"m.onnx", "manifest.json"} for entry in entries)


def test_entries_can_be_read_by_others(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    before = os.umask(0o022)
    try:
        entry = write_entry(tmp_path / "models", "net", None, {"m.onnx": model}, manifest)
    finally:
        os.umask(before)
    assert entry.stat().st_mode & 0o777 == 0o755
    assert (entry / "m.onnx").stat().st_mode & 0o777 == 0o644


def test_next_version_ignores_what_is_no_version(tmp_path: Path) -> None:
    assert next_version(tmp_path / "none") == 1
    for name in ("2", "10", "x", ".ab.partial", "3.onnx", "model.yaml"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 11


def test_a_version_is_never_overwritten(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    repository = tmp_path / "models"
    write_entry(repository, "net", 1, {"m.onnx": model}, manifest)
    before = listing(repository)
    with pytest.raises(ExportError, match="1 exists, and a version is never overwritten: leave --version out to get 2"):
        write_entry(repository, "net", 1, {"other.onnx": model}, manifest)
    with pytest.raises(ExportError, match="is never overwritten"):
        check_targets(repository, "net", 1, None)
    assert listing(repository) == before


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    repository = tmp_path / "models"
    with pytest.raises(FileNotFoundError):
        write_entry(repository, "net", None, {"m.onnx": model, "n.onnx": tmp_path / "gone.onnx"}, manifest)
    assert not repository.exists()
    write_entry(repository, "net", None, {"m.onnx": model}, manifest)
    before = listing(repository)
    with pytest.raises(FileNotFoundError):
        write_entry(repository, "net", None, {"m.onnx": model, "n.onnx": tmp_path / "gone.onnx"}, manifest)
    assert listing(repository) == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    target = tmp_path / "models"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (model.stat().st_size // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_entry(target, "net", None, {"m.onnx": model}, manifest)
        assert str(caught.value.filename).startswith(str(target / "net"))  # not the source, whose disk may be another
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.exists()


def test_a_single_file_and_its_manifest(tmp_path: Path, model: Path, manifest: Manifest) -> None:
    output = tmp_path / "net.onnx"
    output.write_text("old")
    write_output(output, {"net.onnx": model}, manifest)
    assert file_sha256(output) == file_sha256(model)
    assert read_manifest(manifest_path(output)) == manifest
    with pytest.raises(FileNotFoundError):
        write_output(output, {"net.onnx": tmp_path / "gone.onnx"}, manifest)
    assert file_sha256(output) == file_sha256(model)
    assert not [name for name in listing(tmp_path) if "partial" in name]


def test_places_that_can_not_be_written_are_found_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for repository, output, said in (
        (tmp_path / "file", None, "is a file; expected a folder"),
        (tmp_path / "file" / "models", None, "is a file; expected a folder"),
        (None, tmp_path, "is a folder; expected the file to write"),
        (None, tmp_path / "none" / "m.onnx", "there is no folder"),
    ):
        with pytest.raises(ExportError, match=said):
            check_targets(repository, "net", None, output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="can't be written to"):
        check_targets(tmp_path / "models", "net", None, None)
