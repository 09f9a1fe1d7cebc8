"""Which TensorRT engine runs on the GPU that is here: one of the entry's, or one that was built on this machine, by what it was built on
and for; else none, with the reason, and whether one is to be built.

An engine is machine code. TensorRT itself refuses one of another version or GPU, but only when it's opened, with a number for a reason;
here it's known before, and said in words, so that the ONNX file is served meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.backends.nvidia.cuda import DeviceFacts, open_gpu
from server.backends.nvidia.folders import private_folder
from server.backends.nvidia.library import load
from server.config import Engines
from server.errors import ModelDefect
from server.repository.manifest import MANIFEST_NAME, Engine, Manifest, Variant, file_sha256, read_manifest
from server.repository.model_config import Batching

BUILDING = "one is built here now"
BUILT = "built"
"""The folder in the cache of engines that `tidegate export engine` built; beside it are onnxruntime's own."""


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """An engine that's to be built: of which version's folder, in which precision, on which device, for runs of up to how many rows, into
    which folder."""

    folder: Path
    precision: str
    device: str
    most_rows: int
    into: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an engine is wanted for: the entry's variant in ONNX, the device, and how it's batched."""

    folder: Path
    manifest: Manifest
    plain: Variant
    device: str
    batching: Batching


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine and the folder that it lies in; None where none runs here. `why` is for everyone, `build` what is to be done about it."""

    engine: Variant | None = None
    folder: Path | None = None
    why: str = ""
    build: EngineBuild | None = None


def choose_engine(wanted: Wanted, settings: Engines) -> Choice:
    """The engine that runs on the device. Nothing at all is said where there's none and none was meant."""
    plain = wanted.plain
    given = [variant for variant in wanted.manifest.variants if variant.engine is not None and variant.precision == plain.precision]
    meant = bool(given) or plain.target == "tensorrt"
    if not meant:
        return Choice()
    try:
        facts, tensorrt = open_gpu(wanted.device).facts(), load().version
    except ModelDefect as error:
        return Choice(why=f"served as ONNX, because its engine can't run: {error}") if given else Choice()
    faults: list[str] = []
    for variant in given:
        if variant.engine is not None:
            found = list(misfits(variant.engine, facts, tensorrt, wanted.batching.max_rows))
            if not found:
                return Choice(variant, wanted.folder)
            faults.append(f"{variant.file} {'; '.join(found)}")
    return _built_here(wanted, settings, (facts, tensorrt), faults)


def _built_here(wanted: Wanted, settings: Engines, here: tuple[DeviceFacts, str], faults: list[str]) -> Choice:
    """One that was built on this machine before, else what is to be said, and built."""
    into = cache_folder(settings) / BUILT / _key(wanted, *here)
    engine, fault = _kept(into, wanted, *here) if into.is_dir() else (None, "")
    if engine is not None:
        return Choice(engine, into)
    faults += [fault] if fault else []
    why = f"served as ONNX, because no engine fits {wanted.device}: {', '.join(faults)}" if faults else ""
    if settings.build and not fault:
        build = EngineBuild(wanted.folder, wanted.plain.precision, wanted.device, wanted.batching.max_rows, into)
        return Choice(why="; ".join(filter(None, (why or "served as ONNX until its engine is there", BUILDING))), build=build)
    advice = f"remove {into.name} from the cache" if fault else "`tidegate export --target tensorrt` on this machine builds one"
    return Choice(why=f"{why}; {advice}" if why else "")


def _key(wanted: Wanted, facts: DeviceFacts, tensorrt: str) -> str:
    """What an engine depends on, as a folder's name."""
    batching = wanted.batching
    parts = [wanted.plain.content, facts.name, facts.compute_capability, facts.driver, tensorrt, batching.max_rows, batching.preferred_rows]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _kept(into: Path, wanted: Wanted, facts: DeviceFacts, tensorrt: str) -> tuple[Variant | None, str]:
    """The engine in a folder of the cache, which must be whole and this user's alone; None and why not."""
    try:
        for folder in (into.parents[1], into.parent, into):
            private_folder(folder)
        (variant,) = read_manifest(into / MANIFEST_NAME).variants
        if variant.engine is None or file_sha256(into / variant.file) != variant.sha256:
            return None, f"the one that was built here, {into.name}, isn't the file that was written"
    except (ModelDefect, OSError, ValueError) as error:
        return None, f"the one that was built here can't be used: {error}"
    faults = list(misfits(variant.engine, facts, tensorrt, wanted.batching.max_rows))
    return (None, f"the one that was built here {'; '.join(faults)}") if faults else (variant, "")


def cache_folder(settings: Engines) -> Path:
    """Where engines that are built here are kept."""
    return settings.cache or default_cache(os.environ)


def default_cache(environment: Mapping[str, str]) -> Path:
    """The folder for engines where no setting names one: in the user's cache."""
    return Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/")) / ".cache") / "tidegate" / "engines"


def misfits(engine: Engine, facts: DeviceFacts, tensorrt: str, max_rows: int) -> Iterator[str]:
    """What differs between where an engine was built and where it would run; nothing where it fits."""
    if engine.compute_capability != facts.compute_capability:
        yield (
            f"was built for compute capability {engine.compute_capability} ({engine.gpu}), "
            f"and this is {facts.compute_capability} ({facts.name})"
        )
    if not _takes_version(engine, tensorrt):
        yield f"was built by TensorRT {engine.tensorrt}, and this is {tensorrt}"
    if (most := most_rows(engine)) < max_rows:
        yield f"takes up to {most} rows, and batching.max_rows is {max_rows}"


def most_rows(engine: Engine) -> int:
    """The rows of the largest run that an engine takes; inputs without axes have none."""
    return max((bounds.greatest[0] for profile in engine.profiles for bounds in profile.values() if bounds.greatest), default=1)


def _takes_version(engine: Engine, tensorrt: str) -> bool:
    """A version-compatible engine runs on its own version and later ones; any other on exactly its own."""
    if engine.version_compatible:
        return _numbers(tensorrt) >= _numbers(engine.tensorrt)
    return tensorrt == engine.tensorrt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
