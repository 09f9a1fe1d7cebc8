"""Which of the names that our code gives onnxruntime's GPU providers are in onnxruntime-gpu's libraries: `make gpu-stubs` writes them down.

The providers check their options when a session is made on a GPU, and there's none here; but each name is a string in the library that
reads it. Strings end with a zero byte, and linkers keep one that is another's tail within that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from server.backends.base import VariantSpec
from server.backends.ort.providers import ARENAS, FORBID_CPU, RECORD_PLACES, TENSORRT, UNSYNCHRONIZED, cache_options, gpu_providers
from tests.nvidia.stubs import fetched

VERSION = "1.31.1"
TARGET = Path(__file__).with_name("onnxruntime_options.txt")
CORE, CUDA_LIBRARY, TENSORRT_LIBRARY = (
    f"libonnxruntime.so.{VERSION}",
    "libonnxruntime_providers_cuda.so",
    "libonnxruntime_providers_tensorrt.so",
)
NONE = "no_such_option"
"""What must not be found, or the search finds anything."""
WHOLE: Mapping[str, object] = {
    "provider": "tensorrt",
    "memory": 1,
    "workspace": 1,
    "builder_level": 1,
    "profile": {"x": ((1,), (1,), (1,))},
}
"""Settings that have every option said."""


def used() -> dict[str, set[str]]:
    """By library: every name of an option, of a value and of a configuration entry that our code gives it."""
    spec = VariantSpec("m", "1", "fp32", "onnxruntime", Path("m.onnx"), options=WHOLE)
    names: dict[str, set[str]] = {CORE: {FORBID_CPU, RECORD_PLACES, UNSYNCHRONIZED}}
    for provider, options in gpu_providers(spec, 0, 1, cache_options("a", "b")):
        names[TENSORRT_LIBRARY if provider == TENSORRT else CUDA_LIBRARY] = set(options)
    names[CUDA_LIBRARY] |= {*ARENAS.values(), *(word.upper() for word in ("heuristic", "exhaustive", "default"))}
    return names


def written() -> dict[str, set[str]]:
    """What TARGET says was found."""
    lines = [line.split() for line in TARGET.read_text().splitlines() if not line.startswith("#")]
    return {library: {name for found, name in lines if found == library} for library, _ in lines}


def main() -> None:
    """Look every name up in the libraries of the release."""
    folder = fetched(f"onnxruntime-gpu=={VERSION}") / "onnxruntime" / "capi"
    lines = [f"# onnxruntime-gpu {VERSION}: names that tidegate gives it and its libraries hold. Written by `make gpu-stubs`; don't edit."]
    for library, names in used().items():
        content = (folder / library).read_bytes()
        if NONE.encode() + b"\0" in content:
            raise SystemExit(f"{library} holds {NONE!r}: the search proves nothing")
        for name in sorted(names):
            if name.encode() + b"\0" in content:
                lines.append(f"{library} {name}")
            else:
                sys.stderr.write(f"{library} has no {name!r}\n")
    TARGET.write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{TARGET.name}\n")


if __name__ == "__main__":
    main()
