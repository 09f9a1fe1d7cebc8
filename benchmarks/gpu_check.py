"""The proof on a GPU: `make gpu-check`, or `python -m benchmarks.gpu_check a b c` for some of its parts. Minutes.

Three parts, because they need different packages: (a) PyTorch, cuda-bindings and NVML, (b) onnxruntime-gpu, (c) TensorRT. A part whose
checks all pass writes a dated proof under docs/proofs/. Exit status 1 where a check fails or a part can't run; what it needs is said.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from benchmarks import gpu_parts
from benchmarks.gpu_parts import CheckFailed
from server.backends.nvidia.cuda import Gpu, open_gpu
from server.errors import TidegateError

PROOFS = Path(__file__).parents[1] / "docs" / "proofs"
DEVICE = "cuda:0"
Check = Callable[[Gpu, Path], str]


@dataclass(frozen=True, slots=True)
class Part:
    """One part: `modules` must be there, `packages` are named in the proof; a check gives what it found, in words, or raises."""

    letter: str
    title: str
    modules: Mapping[str, str]
    packages: tuple[str, ...]
    checks: Mapping[str, Check]


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        part.letter: part
        for part in (
            Part(
                "a",
                "PyTorch, cuda-bindings, NVML",
                {"torch": "torch (its CUDA build)", "cuda.bindings": "cuda-bindings", "pynvml": "nvidia-ml-py"},
                ("torch", "cuda-bindings", "nvidia-ml-py"),
                {
                    "pinned memory and a stream": gpu_parts.pinned_copies,
                    "figures of the GPU": gpu_parts.nvml_figures,
                    "the pytorch backend, fp32 and fp16": gpu_parts.pytorch_backend,
                    "a process lane with a CUDA context": gpu_parts.process_lane,
                },
            ),
            Part(
                "b",
                "onnxruntime-gpu",
                {"onnxruntime": "onnxruntime-gpu[cuda,cudnn]", "cuda.bindings": "cuda-bindings", "onnx": "onnx"},
                ("onnxruntime-gpu", "cuda-bindings", "onnx"),
                {
                    "the CUDA provider against the CPU, arrays bound": gpu_parts.onnxruntime_cuda,
                    "what bound arrays take of the device": gpu_parts.onnxruntime_memory,
                },
            ),
            Part(
                "c",
                "TensorRT",
                {"tensorrt": "tensorrt-cu13>=10.13.2,<11", "cuda.bindings": "cuda-bindings", "onnx": "onnx"},
                ("tensorrt-cu13", "onnxruntime-gpu", "cuda-bindings"),
                {
                    "an engine, built and run at every number of rows": gpu_parts.tensorrt_engine,
                    "an engine whose file was cut short is refused": gpu_parts.tensorrt_refuses,
                    "an engine built by the command that the server starts": gpu_parts.server_built_engine,
                    "onnxruntime's TensorRT provider and its cache": gpu_parts.onnxruntime_tensorrt,
                },
            ),
        )
    }
)


def missing(part: Part) -> list[str]:
    """The packages that a part needs and that can't be found."""
    return [package for module, package in part.modules.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent isn't there
        return False


def run(part: Part, gpu: Gpu, say: Callable[[str], None]) -> tuple[list[str], bool]:
    """Run a part's checks; a line for each, and whether all passed. What comes after a failure is tried all the same."""
    lines: list[str] = []
    passed = True
    for name, check in part.checks.items():
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tidegate-gpu-") as folder:
            try:
                found = check(gpu, Path(folder))
            except (TidegateError, CheckFailed, OSError, RuntimeError, ImportError) as error:
                passed, found = False, f"FAILED: {type(error).__name__}: {error}"
        lines.append(f"{name} ({time.monotonic() - begun:.1f} s): {found}")
        say(f"  {lines[-1]}")
    return lines, passed


def proof(part: Part, gpu: Gpu, lines: Sequence[str], now: datetime) -> str:
    """The text of a proof file."""
    facts = gpu.facts()
    head = (
        f"# Proof on a GPU, part {part.letter}: {part.title}\n\n"
        f"{now:%Y-%m-%d %H:%M} UTC, {facts.name}, compute capability {facts.compute_capability}, {facts.memory >> 20} MiB, "
        f"driver for CUDA {facts.driver}. Written by `make gpu-check`.\n\n"
    )
    versions = "".join(f"- {package} {number}\n" for package, number in _versions(part.packages))
    return f"{head}{versions}\n" + "".join(f"1. {line}\n" for line in lines)


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for package in ("tidegate", *packages):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def write(part: Part, gpu: Gpu, lines: Sequence[str], folder: Path) -> Path:
    """Write a part's proof, dated and named after the GPU."""
    now = datetime.now(UTC)
    name = "-".join("".join(c if c.isalnum() else " " for c in gpu.facts().name.lower()).split())
    path = folder / f"{now:%Y-%m-%d}-{part.letter}-{name}.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(proof(part, gpu, lines, now))
    return path


def main(letters: Sequence[str], folder: Path = PROOFS, say: Callable[[str], None] = print) -> int:
    """Run the parts named, all where none is; 0 where every check of each passed."""
    unknown = [letter for letter in letters if letter not in PARTS]
    if unknown:
        say(f"error: no part {unknown[0]!r}; expected {', '.join(PARTS)}")
        return 2
    try:
        gpu = open_gpu(DEVICE)
    except TidegateError as error:
        say(f"nothing was proved: {error}")
        say("needed: an NVIDIA GPU of compute capability 7.5 or newer, its driver, and there `EXTRAS=gpu,export,monitor,dev make setup`")
        return 1
    failed = False
    for part in (PARTS[letter] for letter in letters or PARTS):
        say(f"part {part.letter}: {part.title}")
        if lacking := missing(part):
            say(f"  can't run: {', '.join(lacking)} isn't installed")
            failed = True
            continue
        lines, passed = run(part, gpu, say)
        failed |= not passed
        say(f"  {write(part, gpu, lines, folder)}" if passed else "  no proof is written")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
