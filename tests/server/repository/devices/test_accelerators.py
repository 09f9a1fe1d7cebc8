"""What a backend is told of the GPU that an ONNX file runs on, from model.yaml and from Triton's config.pbtxt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.config import Engines, LaneDefaults, Settings
from server.errors import ModelDefect
from server.repository.configs.reading import read_model_config
from server.repository.devices.engines import default_cache
from server.repository.loader import describe
from server.repository.manifest import file_sha256
from server.repository.store import Entry
from tests.server.models import embedding_model, external_model, linear_model, place, place_with_manifest
from tests.server.repository.test_loader import described


def options(repository: Path, yaml: str, device: str = "cuda:0", **changes: Any) -> dict[str, Any]:
    entry = place(repository, "net", linear_model, yaml=yaml)
    settings = Settings(repository=repository, lanes=LaneDefaults(device=device), **changes)
    return dict(describe(Entry("net", entry, ("1",)), "1", settings).spec.options)


def refused(repository: Path, yaml: str, device: str = "cuda:0") -> str:
    with pytest.raises(ModelDefect) as caught:
        options(repository, yaml, device)
    return str(caught.value)


def test_a_cpu_is_told_nothing(tmp_path: Path) -> None:
    assert options(tmp_path, "", "cpu") == {}


def test_cuda_is_the_default(tmp_path: Path) -> None:
    assert options(tmp_path, "") == {"provider": "cuda", "arena": "exact", "conv_search": "heuristic"}


def test_tensorrt_gets_the_shapes_that_will_come(tmp_path: Path) -> None:
    found = options(
        tmp_path, "accelerator: {provider: tensorrt, workspace: 2GiB}\nbatching: {max_rows: 32}\n", engines=Engines(cache=tmp_path / "e")
    )
    assert found["profile"] == {"x": ((1, 8), (8, 8), (32, 8))}
    assert found["workspace"] == 2 << 30
    assert found["cache"] == str(tmp_path / "e")
    assert found["content"] == file_sha256(tmp_path / "net" / "1" / "model.onnx")


def test_it_is_tuned_for_the_preferred_rows(tmp_path: Path) -> None:
    found = options(tmp_path, "accelerator: {provider: tensorrt}\nbatching: {max_rows: 32, preferred_rows: [4, 16]}\n")
    assert found["profile"] == {"x": ((1, 8), (16, 8), (32, 8))}
    assert found["cache"].endswith("tidegate/engines")


def test_a_length_needs_its_greatest(tmp_path: Path) -> None:
    entry = place(tmp_path, "net", embedding_model, yaml="accelerator: {provider: tensorrt}\n")
    with pytest.raises(ModelDefect) as caught:
        described(entry, device="cuda:0")
    assert "model.yaml:1: accelerator.provider: tensorrt needs the greatest length of axis 1 of input 'tokens'" in str(caught.value)
    (entry / "model.yaml").write_text("accelerator: {provider: tensorrt}\ninputs: {tokens: {max_shape: [-1, 128]}}\n")
    assert described(entry, device="cuda:0").spec.options["profile"] == {"tokens": ((1, 1), (16, 64), (64, 128))}


def test_a_manifest_says_it_too(tmp_path: Path) -> None:
    entry = place_with_manifest(tmp_path, "net")
    (entry / "model.yaml").write_text("accelerator: {provider: tensorrt}\n")
    assert described(entry, device="cuda:0").spec.options["provider"] == "tensorrt"


@pytest.mark.parametrize(
    ("yaml", "device", "said"),
    [
        ("accelerator: {provider: tensorrt}", "cpu", "accelerator: needs a GPU: lanes.device (or the server's) is cpu"),
        ("accelerator: {provider: tensort}", "cuda:0", "accelerator.provider"),
        ("accelerator: {memry: 4GiB}", "cuda:0", "did you mean 'memory'"),
        ("accelerator: {builder_level: 6}", "cuda:0", "accelerator.builder_level"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, yaml: str, device: str, said: str) -> None:
    assert said in refused(tmp_path, yaml, device)


def test_the_users_cache() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/tidegate/engines")
    assert default_cache({"HOME": "/h"}) == Path("/h/.cache/tidegate/engines")


TRITON = """
backend: "onnxruntime"
instance_group [ { kind: KIND_GPU, gpus: [ 1 ] } ]
optimization { execution_accelerators { gpu_execution_accelerator: [ {
  name: "%s"
  %s
} ] } }
"""


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        (
            "tensorrt",
            {"max_workspace_size_bytes": "1073741824", "precision_mode": "FP32", "trt_engine_cache_enable": "true"},
            {"workspace": 1 << 30},
        ),
        ("tensorrt", {"trt_builder_optimization_level": "2"}, {"builder_level": 2}),
        ("cuda", {"cudnn_conv_algo_search": "0", "gpu_mem_limit": "4096"}, {"conv_search": "exhaustive", "memory": 4096}),
        ("cuda", {"arena_extend_strategy": "kNextPowerOfTwo"}, {"arena": "double"}),
    ],
)
def test_tritons_accelerators(tmp_path: Path, name: str, parameters: dict[str, str], expected: dict[str, object]) -> None:
    lines = " ".join(f'parameters {{ key: "{key}" value: "{text}" }}' for key, text in parameters.items())
    (tmp_path / "config.pbtxt").write_text(TRITON % (name, lines))
    config = read_model_config(tmp_path)
    assert config.lanes.device == "cuda:1"
    assert config.accelerator is not None
    assert config.accelerator.model_dump(exclude_unset=True) == {"provider": name, **expected}


def test_a_value_of_tritons_that_makes_no_sense_is_told_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(TRITON % ("cuda", 'parameters { key: "gpu_mem_limit" value: "lots" }'))
    with pytest.raises(ModelDefect, match=r"config\.pbtxt:4:.*execution_accelerators"):
        read_model_config(tmp_path)


def test_tritons_accelerators_are_for_gpus(tmp_path: Path) -> None:
    """A repository of Triton's is served as it is also where there's no GPU."""
    entry = place(tmp_path, "net", linear_model)
    (entry / "config.pbtxt").write_text('optimization { execution_accelerators { gpu_execution_accelerator: [ { name: "tensorrt" } ] } }')
    assert described(entry).spec.options == {}
    assert described(entry, device="cuda:0").spec.options["provider"] == "tensorrt"


def test_weights_beside_the_file_are_part_of_it(tmp_path: Path) -> None:
    entry = place(tmp_path, "net", lambda path: external_model(path, "weights.bin"), yaml="accelerator: {provider: tensorrt}\n")
    contents = []
    for factor in (1, 2):
        (np.eye(4, dtype=np.float32) * factor).tofile(entry / "1" / "weights.bin")
        contents.append(described(entry, device="cuda:0").spec.options["content"])
    assert contents[0] != contents[1]
