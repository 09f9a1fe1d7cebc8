"""onnxruntime's providers for NVIDIA GPUs and their options, from a variant's plain settings; every name of an option stands here.

Its names are checked against the strings of onnxruntime-gpu's own libraries (tests/nvidia), for an option that it doesn't know is an error
only where there's a GPU. Precision lies in the file: no precision flag of TensorRT's is ever set, and then the provider makes a strongly
typed network, as the exporter does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from server.backends.base import VariantSpec

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
BUILDER_LEVELS: Mapping[int, int] = {0: 0, 1: 1, 2: 3, 3: 4, 4: 5}
"""TensorRT's effort by our optimization level, as for engines of the exporter's."""
ARENAS: Mapping[str, str] = {"exact": "kSameAsRequested", "double": "kNextPowerOfTwo"}
FORBID_CPU = "session.disable_cpu_ep_fallback"
RECORD_PLACES = "session.record_ep_graph_assignment_info"
UNSYNCHRONIZED = "disable_synchronize_execution_providers"
"""Of a run: what it leaves on its stream is waited for by whoever gave the stream."""
Provider: TypeAlias = tuple[str, dict[str, str]]


def wants_tensorrt(spec: VariantSpec) -> bool:
    """Whether the variant runs by TensorRT within onnxruntime."""
    return spec.options.get("provider") == "tensorrt"


def gpu_providers(spec: VariantSpec, device: int, stream: int, cache: Mapping[str, str]) -> list[Provider]:
    """The providers for one GPU, the preferred first; each computes on `stream`. `cache` is what engine_cache gave, {} without TensorRT.

    TensorRT leaves what it doesn't know to CUDA. Neither names the CPU: what neither runs is for ort.session to allow or refuse.
    """
    common = {"device_id": str(device), "user_compute_stream": str(stream)}
    cuda = (CUDA, common | dict(_cuda(spec)))
    return [(TENSORRT, common | dict(_tensorrt(spec)) | dict(cache)), cuda] if wants_tensorrt(spec) else [cuda]


def _cuda(spec: VariantSpec) -> Iterator[tuple[str, str]]:
    """FP32 multiplies in full up to level 3, or no FP32 parity would hold. A search for convolutions is made for each shape that comes,
    and every number of rows is one: an exhaustive search would stall each of them once."""
    options = spec.options
    yield "use_tf32", "1" if spec.optimization_level >= 4 else "0"
    yield "cudnn_conv_algo_search", str(options.get("conv_search", "heuristic")).upper()
    yield "arena_extend_strategy", ARENAS[options.get("arena", "exact")]
    if options.get("memory"):
        yield "gpu_mem_limit", str(options["memory"])


def _tensorrt(spec: VariantSpec) -> Iterator[tuple[str, str]]:
    options = spec.options
    level = options.get("builder_level")
    yield "trt_builder_optimization_level", str(BUILDER_LEVELS[spec.optimization_level] if level is None else level)
    if options.get("workspace"):
        yield "trt_max_workspace_size", str(options["workspace"])
    profile: Mapping[str, Any] = options.get("profile", {})
    for place, name in enumerate(("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")):
        if profile:
            yield name, ",".join(f"{tensor}:{'x'.join(map(str, shapes[place]))}" for tensor, shapes in profile.items())


def cache_options(engines: str, timings: str) -> dict[str, str]:
    """Where the TensorRT provider keeps engines and the times that it measured."""
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": engines,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": timings,
    }
