"""ONNX → TensorRT engine, on the GPU that it's for: strongly typed (precision lies in the file), with explicit optimization profiles.

Only what TensorRT 10.13 to 11.4 have alike is used. An engine is tied to TensorRT's version and the GPU's compute capability; the manifest
has both (`facts`), and the server compares them before it opens one. Unproven on a GPU until docs/proofs/ holds a proof.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, SupportsInt

from exporters.formats.to_trt import Profile
from exporters.plan import ExportError
from server.backends.nvidia.cuda import Gpu
from server.backends.nvidia.library import Library, load
from server.errors import ModelDefect
from server.repository.manifest import Bounds, Engine, file_sha256

if TYPE_CHECKING:
    import tensorrt as trt

BUILDER_LEVELS: Mapping[int, int] = {0: 0, 1: 1, 2: 3, 3: 4, 4: 5}
"""TensorRT's effort by our optimization level; 3 is its own default."""
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine is built. `workspace` is bytes of scratch memory a layer may take, None for all of the GPU's.

    `tf32` lets FP32 layers multiply with 10 bits of mantissa, which no FP32 parity survives. `version_compatible` makes an engine that
    later versions take, slower. `timing_cache` is a file that is read if it's there and written after.
    """

    level: int = 2
    workspace: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """An engine as bytes, and what it's tied to."""

    plan: bytes
    facts: Engine


def build(file: Path, profiles: Sequence[Mapping[str, Profile]], settings: Settings, gpu: Gpu, told: Told) -> Built:
    """Build an engine of an ONNX file on `gpu`; minutes, told of step by step. Raises ExportError with TensorRT's own words."""
    library = _library()
    gpu.use()
    begun = time.monotonic()
    with _interruptible() as interrupted:
        plan = _build(library, file, profiles, settings, _Progress(told, interrupted))
    facts, bounds = gpu.facts(), [{name: _bounds(shape) for name, shape in profile.items()} for profile in profiles]
    return Built(
        plan,
        Engine(
            tensorrt=library.version,
            gpu=facts.name,
            compute_capability=facts.compute_capability,
            driver=facts.driver,
            version_compatible=settings.version_compatible,
            builder_level=BUILDER_LEVELS[settings.level],
            workspace=settings.workspace,
            profiles=tuple(bounds),
            onnx_sha256=file_sha256(file),
            build_seconds=round(time.monotonic() - begun, 1),
        ),
    )


def _library() -> Library:
    try:
        return load()
    except ModelDefect as error:
        raise ExportError(str(error)) from error


def _bounds(profile: Profile) -> Bounds:
    return Bounds(least=profile.least, likely=profile.likely, greatest=profile.greatest)


def _build(library: Library, file: Path, profiles: Sequence[Mapping[str, Profile]], settings: Settings, progress: _Progress) -> bytes:
    import tensorrt as trt

    try:
        builder = trt.Builder(library.logger)
    except TypeError as error:  # what its bindings make of a null pointer: no driver, or no device
        raise ExportError(
            f"TensorRT {library.version} doesn't start: {library.blame()}; `tidegate doctor` says what the GPU lacks"
        ) from error
    network = builder.create_network(1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value)
    _parse(library, network, file)
    config = _config(builder, settings)
    for profile in profiles:
        _add(builder, config, profile)
    config.progress_monitor = _monitor(progress)
    plan = builder.build_serialized_network(network, config)
    if progress.interrupted():
        raise KeyboardInterrupt
    if plan is None:
        raise ExportError(f"{file.name}: TensorRT can't build an engine: {library.blame()}")
    if settings.timing_cache is not None:
        _save(settings.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    return bytes(memoryview(plan))


def _parse(library: Library, network: trt.INetworkDefinition, file: Path) -> None:
    """By path, so that external data beside the file is found."""
    import tensorrt as trt

    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(file)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{error.node_name()}: {error.desc()}" for error in errors[:3]) or library.blame()
        raise ExportError(f"{file.name}: TensorRT can't read it: {said}")


def _config(builder: trt.Builder, settings: Settings) -> trt.IBuilderConfig:
    import tensorrt as trt

    config = builder.create_builder_config()
    config.builder_optimization_level = BUILDER_LEVELS[settings.level]
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.timing_cache is not None:
        known = settings.timing_cache.read_bytes() if settings.timing_cache.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):  # of another GPU or version: begin a new one
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _add(builder: trt.Builder, config: trt.IBuilderConfig, shapes: Mapping[str, Profile]) -> None:
    import tensorrt as trt

    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, trt.Dims(shape.least), trt.Dims(shape.likely), trt.Dims(shape.greatest))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT doesn't take the profile {shapes}: least, likely and greatest must rise")


@dataclass(slots=True)
class _Progress:
    """Where a build is: phases lie in each other, and each has its steps."""

    told: Told
    interrupted: Callable[[], bool]

    def step(self, phase: str, step: int, steps: int) -> bool:
        """Tell of a step; False ends the build."""
        self.told(f"{phase}: {step + 1} of {steps}")
        return not self.interrupted()


def _monitor(progress: _Progress) -> trt.IProgressMonitor:
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        """Called from TensorRT's own threads: nothing may be raised here."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: SupportsInt) -> None:
            self._steps[phase_name] = int(num_steps)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            return progress.step(phase_name, int(step), self._steps.get(phase_name, int(step) + 1))

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _save(path: Path, content: bytes) -> None:
    """Whole or not at all: another export may read it."""
    staged = path.with_name(f".{path.name}.partial")
    staged.write_bytes(content)
    staged.replace(path)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted and end the build at its next step: an exception can't pass through TensorRT's code."""
    seen: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
