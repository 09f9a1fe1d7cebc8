"""Whether a TensorRT engine fits the GPU that is here: what it was built on and for, by its manifest, against the device.

An engine is machine code. TensorRT itself refuses one of another version or GPU, but only when it's opened, with a number for a reason;
here it's known before, and said in words, so that the ONNX file is served meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.backends.nvidia.cuda import DeviceFacts, open_gpu
from server.backends.nvidia.library import load
from server.errors import ModelDefect
from server.repository.manifest import Engine, Manifest, Variant


def engine_for(manifest: Manifest, precision: str, device: str, max_rows: int) -> tuple[Variant | None, str]:
    """The engine of a precision that runs on `device`, None and the reason where none does; None and "" where there's none at all."""
    found = [(variant, variant.engine) for variant in manifest.variants if variant.engine is not None and variant.precision == precision]
    if not found:
        return None, ""
    try:
        facts, tensorrt = open_gpu(device).facts(), load().version
    except ModelDefect as error:
        return None, f"served as ONNX, because its engine can't run: {error}"
    reasons: list[str] = []
    for variant, engine in found:
        faults = list(misfits(engine, facts, tensorrt, max_rows))
        if not faults:
            return variant, ""
        reasons.append(f"{variant.file} {'; '.join(faults)}")
    return (
        None,
        f"served as ONNX, because no engine fits {device}: {', '.join(reasons)}; "
        "`tidegate export --target tensorrt` on this machine builds one",
    )


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


def engine_options(engine: Engine) -> Mapping[str, object]:
    """What the trt backend must know of an engine before it opens it."""
    return {"version_compatible": engine.version_compatible}


def _takes_version(engine: Engine, tensorrt: str) -> bool:
    """A version-compatible engine runs on its own version and later ones; any other on exactly its own."""
    if engine.version_compatible:
        return _numbers(tensorrt) >= _numbers(engine.tensorrt)
    return tensorrt == engine.tensorrt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
