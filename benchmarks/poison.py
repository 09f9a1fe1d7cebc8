"""A backend of which one input kills its process, declared as another package would declare it: y = x for all other inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from server.backends.base import VariantSpec
from server.tensors import Tensor, TensorSpec

NAME = "poisoned"
KILLS = -1
WIDTH = 16


class Poisoned:
    """See server.backends.base.Backend."""

    version: ClassVar[str] = "poisoned 1"
    inputs = (TensorSpec("x", "FP32", (-1, WIDTH)),)
    outputs = (TensorSpec("y", "FP32", (-1, WIDTH)),)

    @classmethod
    def open(cls, spec: VariantSpec) -> Poisoned:
        """Nothing is read."""
        del spec
        return cls()

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """y = x, if it can."""
        if (inputs["x"][:, 0] == KILLS).any():
            os._exit(11)
        return {"y": inputs["x"].copy()}

    def close(self) -> None:
        """Nothing is held."""


def row(number: int) -> NDArray[Any]:
    """The input of one request."""
    return np.full((1, WIDTH), number, np.float32)


def write_model(path: Path) -> None:
    """The ONNX file that says what goes in and out; the backend doesn't read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "poisoned", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def declare(site: Path) -> None:
    """Write the metadata of a package that declares the backend into `site`, which then belongs on the path."""
    info = site / "tidegate_poisoned-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tidegate-poisoned\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tidegate.backends]\n{NAME} = {__name__}:Poisoned\n")
