import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from server.errors import ModelDefect
from server.repository.onnx_files import MAX_DEPTH, Value, check_external, read_onnx
from server.tensors import Tensor
from tests.server import models


def external(name: str, location: str) -> onnx.TensorProto:
    """A weight that lies outside the file."""
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def saved(path: Path, graph: onnx.GraphProto, **parts: object) -> Path:
    path.write_bytes(helper.make_model(graph, ir_version=8, **parts).SerializeToString())
    return path


# What is read


@pytest.mark.parametrize(
    ("datatype", "precision"),
    [("FP32", "fp32"), ("FP16", "fp16"), ("BF16", "bf16"), ("FP64", "fp64"), ("INT64", "native"), ("BYTES", "native")],
)
def test_without_weights_the_precision_is_that_of_the_values(tmp_path: Path, datatype: str, precision: str) -> None:
    assert read_onnx(models.identity_model(tmp_path / "m.onnx", datatype)).precision == precision


def test_inputs_and_outputs_as_declared(tmp_path: Path) -> None:
    file = read_onnx(models.embedding_model(tmp_path / "m.onnx"))
    assert file.inputs == [Value("tokens", "INT64", (-1, -1), ("N", "L"))]
    assert file.outputs == [Value("y", "FP32", (-1, 4), ("N", ""))]


def test_shapes_and_kinds_that_the_file_leaves_open(tmp_path: Path) -> None:
    inputs = [
        models.value("a", None),
        models.value("b", []),
        models.value("c", [None, 3]),
        helper.make_tensor_sequence_value_info("d", 1, None),
    ]
    inputs[2].type.tensor_type.shape.dim[1].dim_value = -1
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["y"])], "g", inputs, [models.value("y", None)])
    file = read_onnx(saved(tmp_path / "m.onnx", graph))
    assert [value[1:3] for value in file.inputs] == [("FP32", None), ("FP32", ()), ("FP32", (-1, -1)), (None, None)]


def test_weights_listed_as_inputs_are_none(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    inputs = [models.value("x", ["N", 4]), models.value("w", [4, 4])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, [models.value("y", ["N", 4])], [weight])
    assert [value.name for value in read_onnx(saved(tmp_path / "m.onnx", graph)).inputs] == ["x"]


def test_most_weights_decide_the_precision(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {"a": np.ones((8, 8), np.float16), "b": np.ones(8, np.float32), "c": np.ones(1000, np.int64)}
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = models.write_model(tmp_path / "m.onnx", nodes, [models.value("x", ["N"])], [models.value("y", ["N"])], weights)
    assert read_onnx(path).precision == "fp16"


def test_a_quantised_graph_is_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    weights = {"scale": np.array(0.1, np.float32)}
    path = models.write_model(tmp_path / "m.onnx", nodes, [models.value("x", ["N"])], [models.value("y", ["N"])], weights)
    assert read_onnx(path).precision == "int8"


def test_large_weights_are_skipped(tmp_path: Path) -> None:
    path = models.linear_model(tmp_path / "m.onnx", inputs=1000, outputs=1000)
    file = read_onnx(path)
    assert file.weights == {"FP32": 1000 * 1000 + 1000}
    assert file.inputs == [Value("x", "FP32", (-1, 1000), ("N", ""))]


def test_external_weights_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """In the graph, in attributes, in the graphs of attributes, in sparse tensors and in functions."""
    branch = helper.make_graph([], "b", [], [models.value("z", [2, 2])], [external("z", "branch.bin")])
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["k"], value=external("k", "constant.bin")),
        helper.make_node("Odd", [], ["o"], tensors=[external("t", "list.bin")], graphs=[branch]),
    ]
    graph = helper.make_graph(nodes, "g", [models.value("c", [], "BOOL")], [models.value("y", [2, 2])], [external("w", "w.bin")])
    sparse = onnx.SparseTensorProto(values=external("v", "values.bin"), indices=external("i", "indices.bin"))
    graph.sparse_initializer.append(sparse)
    inner = helper.make_node("Constant", [], ["k"], value=external("f", "function.bin"))
    function = helper.make_function("d", "F", [], ["k"], [inner], [helper.make_opsetid("", 17)])
    path = saved(tmp_path / "m.onnx", graph, functions=[function])
    expected = {"branch", "constant", "list", "w", "values", "indices", "function"}
    assert read_onnx(path).external == {f"{name}.bin" for name in expected}


def test_weights_inside_the_file_have_no_place(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    tensor.external_data.add(key="location", value="../left.bin")
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [models.value("y", [2])], [tensor])
    assert read_onnx(saved(tmp_path / "m.onnx", graph)).external == set()


# What isn't a model


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x00" * 100, b"\xff" * 100, b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x08\x08"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelDefect, match=f"{path}: not an ONNX file"):
        read_onnx(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelDefect, match="can't be read: No such file"):
        read_onnx(tmp_path / "m.onnx")


def test_deep_graphs_are_refused(tmp_path: Path) -> None:
    """Built byte by byte: protobuf's own libraries refuse to write it."""

    def wrapped(number: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = b""
    for _ in range(MAX_DEPTH):
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))  # the graph of a node's attribute
    path = tmp_path / "m.onnx"
    path.write_bytes(wrapped(7, graph))
    with pytest.raises(ModelDefect, match="nested deeper than"):
        read_onnx(path)


def test_a_weight_of_many_axes_is_refused(tmp_path: Path) -> None:
    for dims in ([1] * 65, [1 << 62] * 65):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
        with pytest.raises(ModelDefect, match="more than 64 axes"):
            read_onnx(saved(tmp_path / "m.onnx", helper.make_graph([], "g", [], [], [tensor])))


def test_a_weight_whose_place_is_not_said_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    with pytest.raises(ModelDefect, match="tensor 'w' is outside the file, and it isn't said where"):
        read_onnx(saved(tmp_path / "m.onnx", helper.make_graph([], "g", [], [], [tensor])))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_is_a_defect_or_goes_unnoticed(tmp_path: Path, data: st.DataObject) -> None:
    """Never another error, wherever the bytes are changed or end."""
    whole = bytearray(models.linear_model(tmp_path / "m.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(ModelDefect):
        read_onnx(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_no_damage_hides_where_weights_lie(tmp_path: Path, data: st.DataObject) -> None:
    """What protobuf still reads as an external weight is found here, or the file is refused."""
    whole = bytearray(models.external_model(tmp_path / "m.onnx", "../w.bin").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(whole))
        found = read_onnx(path).external
    except (DecodeError, ModelDefect):
        return
    weights = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert {pair.value for tensor in weights for pair in tensor.external_data if pair.key == "location"} <= found


# Where weights may lie


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "sub//w.bin"])
def test_weights_in_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("w.bin", "sub/w.bin"):
        (tmp_path / name).write_bytes(b"")
    check_external(tmp_path / "m.onnx", {location})


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../w.bin", "which leads out of the model's folder"),
        ("sub/../w.bin", "which leads out of the model's folder"),
        ("/etc/passwd", "which leads out of the model's folder"),
        ("", "which leads out of the model's folder"),
        (".", "which leads out of the model's folder"),
        ("w\0.bin", "which leads out of the model's folder"),
        ("..\\w.bin", "which leads out of the model's folder"),
        ("*/_ORT_MEM_ADDR_/*", "and there is no such file"),
        ("none.bin", "and there is no such file"),
        ("sub", "and there is no such file"),
        ("link.bin", "which is reached over the link"),
        ("inner.bin", "which is reached over the link"),
        ("linked/w.bin", "which is reached over the link"),
    ],
)
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str, message: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "w.bin", folder / "w.bin", folder / "sub" / "w.bin"):
        path.write_bytes(b"")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "inner.bin").symlink_to("w.bin")
    (folder / "linked").symlink_to("sub")
    with pytest.raises(ModelDefect, match="its weights lie in") as caught:
        check_external(folder / "m.onnx", {location})
    assert message in str(caught.value)
