"""Runs a three-number model on a device, for `tidegate doctor`: in a process of its own, since a broken runtime or driver may crash it.

`python -m server.commands.trial cuda:0` prints the runtime's version, or what went wrong and exits 1; `… tensorrt` the same by
onnxruntime's TensorRT provider on the first GPU. `… providers` prints two lines: the providers that onnxruntime lists, and those that it
has a device for; `… libraries` what CUDA and TensorRT are here, or why they aren't.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from server.backends.base import VariantSpec
from server.backends.nvidia.cuda import open_gpu
from server.backends.nvidia.library import load
from server.backends.registry import DEFAULT, backend_named
from server.errors import TidegateError

FIRST_GPU = "cuda:0"
NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
DOUBLE = (
    b'\x08\x08\x12\x00:7\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01N'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01NB\x04\n\x00\x10\x11"
)
"""An ONNX file: y = x + x, FP32 [N]."""


def try_device(device: str, options: Mapping[str, object] = NO_OPTIONS) -> str:
    """The runtime's version, when it gives right answers on `device`. Raises TidegateError where it can't, with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "double.onnx"
        path.write_bytes(DOUBLE)
        backend_class = backend_named(DEFAULT)
        backend = backend_class.open(VariantSpec("trial", "1", "fp32", DEFAULT, path, device=device, threads=1, options=options))
        try:
            answer = backend.run({"x": np.array([1, 2, 3], np.float32)}, 3)["y"].tolist()
        finally:
            backend.close()
    if answer != [2, 4, 6]:
        raise TidegateError(f"it answered {answer} in place of [2, 4, 6]")
    return backend_class.version


def providers() -> str:
    """What onnxruntime lists (all that was built in), and below it what it found a device for."""
    ort = importlib.import_module("onnxruntime")
    real = {device.ep_name for device in ort.get_ep_devices()} if hasattr(ort, "get_ep_devices") else set()
    return f"{', '.join(ort.get_available_providers())}\n{', '.join(sorted(real))}"


def libraries() -> str:
    """A line each of CUDA and TensorRT: its name, ok or missing, and what was seen, with tabs between."""
    lines = []
    for name, look in (("CUDA", _cuda), ("TensorRT", lambda: load().version)):
        try:
            lines.append(f"{name}\tok\t{look()}")
        except TidegateError as error:
            lines.append(f"{name}\tmissing\t{error}")
    return "\n".join(lines)


def _cuda() -> str:
    facts = open_gpu(FIRST_GPU).facts()
    return f"the driver runs up to CUDA {facts.driver}; {facts.name}, compute capability {facts.compute_capability}"


def answer(question: str) -> str:
    """What is printed. Raises TidegateError."""
    asked: Mapping[str, Callable[[], str]] = {
        "providers": providers,
        "libraries": libraries,
        "tensorrt": lambda: try_device(FIRST_GPU, {"provider": "tensorrt", "profile": {"x": ((1,), (3,), (3,))}}),
    }
    return asked.get(question, lambda: try_device(question))()


if __name__ == "__main__":
    try:
        sys.stdout.write(answer(sys.argv[1]))
    except TidegateError as error:
        sys.exit(str(error))
