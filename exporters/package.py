"""Puts a result where it belongs, whole or not at all: a repository entry NAME/VERSION, or one ONNX file with its manifest.

Everything is written beside its place under a name that starts with a dot, synced to disk, and renamed. What fails or is interrupted
before the rename leaves nothing behind; what was there before isn't touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from exporters.plan import ExportError
from server.repository.manifest import MANIFEST_NAME, Manifest

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


def check_targets(repository: Path | None, name: str, version: int | None, output: Path | None) -> None:
    """Refuse, before any work, what could only fail after it: a version that exists, a place that can't be written to."""
    if repository is not None:
        if version is not None and (repository / name / str(version)).exists():
            raise ExportError(_exists(repository / name, version))
        _check_writable(repository / name)
    if output is not None:
        if output.is_dir() or manifest_path(output).is_dir():
            raise ExportError(f"{output}: is a folder; expected the file to write")
        if not output.parent.is_dir():
            raise ExportError(f"{output}: there is no folder {output.parent}")
        _check_writable(output.parent)


def next_version(folder: Path) -> int:
    """One more than the highest version in a model's folder, 1 where there's none."""
    entries = os.listdir(folder) if folder.is_dir() else []
    return 1 + max((int(entry) for entry in entries if entry.isascii() and entry.isdecimal()), default=0)


def write_entry(repository: Path, name: str, version: int | None, files: dict[str, Path], manifest: Manifest) -> Path:
    """Write repository/name/version with `files` (by their names there) and the manifest, in one rename. Returns the entry.

    Without a version it's the next free one, also where another export takes that one meanwhile. Raises ExportError where the
    version exists, OSError where the disk refuses.
    """
    folder = repository / name
    with _made(folder), _staging(folder / f".{secrets.token_hex(6)}.partial") as staging:
        staging.mkdir()
        for target, source in files.items():
            _copy(source, staging / target)
        _write(staging / MANIFEST_NAME, manifest)
        _sync(staging)
        while True:
            entry = folder / str(version or next_version(folder))
            try:
                staging.rename(entry)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                if version is not None:
                    raise ExportError(_exists(folder, version)) from error
            else:
                _sync(folder)
                return entry


def write_folder(folder: Path, files: dict[str, Path], manifest: Manifest) -> None:
    """Write `folder`, which isn't there yet, with `files` and the manifest, in one rename. Raises ExportError where it's there by then."""
    with _made(folder.parent), _staging(folder.with_name(f".{secrets.token_hex(6)}.partial")) as staging:
        staging.mkdir(mode=0o700)
        for target, source in files.items():
            _copy(source, staging / target)
        _write(staging / MANIFEST_NAME, manifest)
        _sync(staging)
        try:
            staging.rename(folder)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise ExportError(f"{folder}: another one has made it meanwhile") from error
        _sync(folder.parent)


def write_output(output: Path, files: dict[str, Path], manifest: Manifest) -> None:
    """Write `files` (by their names there: the model's, that of weights that lie beside it) to the folder of `output` and the manifest
    beside them, replacing what was there. The manifest names the files.
    """
    targets = [*(output.with_name(name) for name in files), manifest_path(output)]
    staged = [output.with_name(f".{secrets.token_hex(6)}.partial") for _ in targets]
    with contextlib.ExitStack() as stack:
        for temporary in staged:
            stack.enter_context(_staging(temporary))
        for temporary, source in zip(staged, files.values(), strict=False):
            _copy(source, temporary)
        _write(staged[-1], manifest)
        for temporary, target in zip(staged, targets, strict=True):
            temporary.replace(target)
    _sync(output.parent)


def manifest_path(output: Path) -> Path:
    """Where the manifest of a single file lies."""
    return output.with_name(f"{output.name}.manifest.json")


def _exists(folder: Path, version: int) -> str:
    return f"{folder / str(version)} exists, and a version is never overwritten: leave --version out to get {next_version(folder)}"


def _check_writable(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, must take files."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ExportError(f"{folder}: {nearest} is a file; expected a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ExportError(f"{folder}: {nearest} can't be written to")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder and those above it; on failure, take away again those that were made and are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A temporary place: whatever is still there at the end is removed."""
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    _sync(target)


def _write(path: Path, manifest: Manifest) -> None:
    path.write_text(manifest.model_dump_json(indent=2) + "\n")
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
