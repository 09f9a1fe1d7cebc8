"""Finds an exported entry by what a person would name: its folder, its model's folder, its ONNX file, or its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporters.package import manifest_path
from exporters.plan import ExportError
from server.backends.base import VariantSpec
from server.repository.manifest import MANIFEST_NAME, Manifest, Variant, engine_options, read_manifest


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest, and where it lies."""

    path: Path
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return self.path.parent

    def file(self, variant: Variant) -> Path:
        return self.folder / variant.file

    def spec(self, variant: Variant, threads: int) -> VariantSpec:
        """The variant as a server opens it: on the first GPU if it's an engine, else on the CPU."""
        return VariantSpec(
            model=self.manifest.model,
            version=self.folder.name,
            precision=variant.precision,
            backend=variant.backend,
            path=self.file(variant),
            device="cuda:0" if variant.engine else "cpu",
            threads=threads,
            optimization_level=variant.optimization_level,
            inputs=tuple(entry.spec() for entry in variant.inputs),
            outputs=tuple(entry.spec() for entry in variant.outputs),
            options=engine_options(variant.engine) if variant.engine else {},
        )


def find_entry(path: Path) -> Entry:
    """The entry at `path`; of a model's folder that of the highest version. Raises ExportError, or ModelDefect for a bad manifest."""
    for candidate in _candidates(path):
        if candidate.is_file():
            return Entry(candidate, read_manifest(candidate))
    raise ExportError(
        f"{path}: no manifest there; expected an entry's folder (REPOSITORY/NAME/VERSION), a model's folder, a manifest, or an ONNX file "
        f"with {manifest_path(Path('FILE.onnx'))} beside it"
    )


def _candidates(path: Path) -> list[Path]:
    if not path.is_dir():
        return [manifest_path(path), *([path] if path.suffix == ".json" else [])]
    versions = [int(entry.name) for entry in path.iterdir() if entry.name.isascii() and entry.name.isdecimal()]
    return [path / MANIFEST_NAME, *(path / str(version) / MANIFEST_NAME for version in sorted(versions, reverse=True))]
