"""A model repository as Triton's users have it: its own example `simple`, described by config.pbtxt alone."""

from __future__ import annotations

from pathlib import Path

from onnx import helper

from tests.server.models import value, write_model

ROWS = 8
CONFIG = """\
name: "simple"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  {
    name: "INPUT0"
    data_type: TYPE_INT32
    dims: [ 16 ]
  },
  {
    name: "INPUT1"
    data_type: TYPE_INT32
    dims: [ 16 ]
  }
]
output [
  {
    name: "OUTPUT0"
    data_type: TYPE_INT32
    dims: [ 16 ]
  },
  {
    name: "OUTPUT1"
    data_type: TYPE_INT32
    dims: [ 16 ]
  }
]
dynamic_batching { }
"""


def write_simple(repository: Path) -> Path:
    """`simple`: OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1, INT32 [N,16]. Returns `repository`."""
    nodes = [helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]), helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"])]
    inputs, outputs = ([value(f"{kind}{number}", ["N", 16], "INT32") for number in (0, 1)] for kind in ("INPUT", "OUTPUT"))
    write_model(repository / "simple" / "1" / "model.onnx", nodes, inputs, outputs)
    (repository / "simple" / "config.pbtxt").write_text(CONFIG)
    return repository
