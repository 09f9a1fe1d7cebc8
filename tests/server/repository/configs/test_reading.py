"""config.pbtxt: what each field means in model.yaml's words, what is passed over and told, and where errors point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, ModelDefect
from server.protocol.proto.messages import POOL
from server.repository.configs.pbtxt import TritonConfig, places
from server.repository.configs.reading import laid_over, override_of, passed_over, read_model_config
from server.repository.configs.translate import UNDERSTOOD, translate

WHOLE = """
name: "m"  # a comment with { braces }
platform: "onnxruntime_onnx"
max_batch_size: 8
version_policy { specific { versions: [1, 3] } }
input [
  {
    name: "x"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, -1, 224 ]
  },
  { name: "text" data_type: TYPE_STRING dims: 1 }
]
output { name: "y" data_type: TYPE_INT64 dims: [ 1000 ] label_filename: "labels.txt" }
dynamic_batching {
  preferred_batch_size: [ 8, 4, 4 ]
  max_queue_delay_microseconds: 2500
  priority_levels: 3
  default_priority_level: 3
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 1500000
    allow_timeout_override: true
    max_queue_size: 64
  }
}
instance_group [ { count: 2 kind: KIND_GPU gpus: [ 1 ] } ]
model_warmup { name: "w" batch_size: 4 inputs { key: "x" value { data_type: TYPE_FP32 dims: [3, 5, 224] zero_data: true } } }
parameters { key: "who" value { string_value: "me" } }
"""


def translated(text: str) -> dict[str, Any]:
    return translate(text_format.Parse(text, TritonConfig(), descriptor_pool=POOL)).values


def written(folder: Path, text: str) -> Path:
    entry = folder / "m"
    entry.mkdir()
    (entry / "config.pbtxt").write_text(text)
    return entry


def test_a_whole_configuration(tmp_path: Path) -> None:
    assert translated(WHOLE) == {
        "name": "m",
        "backend": "onnxruntime",
        "parameters": {"who": "me"},
        "versions": {"policy": [1, 3]},
        "inputs": {
            "x": {"batch_axis": 0, "shape": [-1, 3, -1, 224], "dtype": "FP32"},
            "text": {"batch_axis": 0, "shape": [-1, 1], "dtype": "BYTES"},
        },
        "outputs": {"y": {"batch_axis": 0, "shape": [-1, 1000], "dtype": "INT64", "labels": "labels.txt"}},
        "batching": {"max_rows": 8, "preferred_rows": [4, 8], "max_wait": 0.0025},
        "queue": {"priorities": 3, "timeout": 1.5, "max_rows": 64},
        "lanes": {"count": 2, "device": "cuda:1"},
        "warmup": {"rows": [4]},
    }
    entry = written(tmp_path, WHOLE)
    config = read_model_config(entry)
    assert (config.batching.max_rows, config.queue.timeout, config.lanes.device) == (8, 1.5, "cuda:1")
    assert config.inputs["text"].dtype == "BYTES"
    assert passed_over(entry) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ('backend: "python"', {"backend": "python"}),
        ('platform: "tensorrt_plan"', {"backend": "trt"}),
        ('backend: "tensorrt" platform: "x"', {"backend": "trt"}),
        ('default_model_filename: "m.onnx"', {"file": "m.onnx"}),
        ("version_policy { all {} }", {"versions": {"policy": "all"}}),
        ("version_policy { latest { num_versions: 2 } }", {"versions": {"policy": "latest", "count": 2}}),
        ('input { name: "x" dims: [ 2, 4 ] }', {"inputs": {"x": {"batch_axis": None, "shape": [2, 4]}}}),
        (
            'max_batch_size: 2 input { name: "x" dims: 1 reshape { shape: [] } }',
            {
                "batching": {"max_rows": 2},
                "inputs": {"x": {"batch_axis": 0, "shape": [-1, 1], "reshape": [-1]}},
            },
        ),
        ("dynamic_batching {}", {}),
        ("response_cache { enable: true }", {"cache": {"max_bytes": 64 << 20}}),
        ("response_cache { enable: false }", {}),
        ("model_transaction_policy { decoupled: true }", {"decoupled": True}),
        (
            'sequence_batching { direct {} max_sequence_idle_microseconds: 5000000 state { input_name: "h" output_name: "hn" } }',
            {"sequence": {"state": [{"input": "h", "output": "hn"}], "idle_timeout": 5.0}},
        ),
        (
            'platform: "ensemble" ensemble_scheduling { step [ { model_name: "a" model_version: -1 input_map { key: "x" value: "in" } '
            'output_map { key: "y" value: "mid" } }, { model_name: "b" model_version: 3 input_map { key: "x" value: "mid" } '
            'output_map { key: "y" value: "out" } } ] }',
            {
                "ensemble": {
                    "steps": [
                        {"model": "a", "inputs": {"x": "in"}, "outputs": {"y": "mid"}},
                        {"model": "b", "version": 3, "inputs": {"x": "mid"}, "outputs": {"y": "out"}},
                    ]
                }
            },
        ),
        ("instance_group { kind: KIND_CPU }", {"lanes": {"count": 1, "device": "cpu"}}),
        ("instance_group [ { count: 2 }, { count: 3 } ]", {"lanes": {"count": 5}}),
        ("instance_group { kind: KIND_GPU }", {"lanes": {"count": 1, "device": "cuda:0"}}),
        ("model_warmup [ { batch_size: 4 }, {}, { batch_size: 4 } ]", {"warmup": {"rows": [1, 4]}}),
    ],
)
def test_single_fields(text: str, expected: dict[str, Any]) -> None:
    assert translated(text) == expected


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("metric_tags { key: 'a' value: 'b' }", "1:1: metric_tags: nothing here acts on it"),
        ("\n\n  optimization { cuda { graphs: true } }", "3:18: optimization.cuda: nothing here acts on it"),
        ("dynamic_batching { preserve_ordering: true }", "1:20: dynamic_batching.preserve_ordering: nothing here acts on it"),
        ("input { name: 'x' allow_ragged_batch: true }", "1:19: input.allow_ragged_batch: nothing here acts on it"),
        ("input [ { name: 'a' },\n { name: 'b' optional: true } ]", "2:14: input.optional: nothing here acts on it"),
        (
            "dynamic_batching { priority_levels: 5 default_priority_level: 2 }",
            "1:39: dynamic_batching.default_priority_level: requests without a priority have the last one, 5",
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: DELAY } }",
            "1:43: dynamic_batching.default_queue_policy.timeout_action: a request that is too late is refused, not put last",
        ),
        (
            "dynamic_batching { priority_levels: 2 priority_queue_policy { key: 1 value { max_queue_size: 4 } } }",
            "1:39: dynamic_batching.priority_queue_policy: every priority has default_queue_policy; a request's `timeout` goes before it",
        ),
        ("sequence_batching { oldest {} }", "1:19: sequence_batching: without a state there's nothing that the server would keep"),
        (
            'sequence_batching { state { input_name: "h" output_name: "hn" } control_input { name: "START" control { kind: 0 } } }',
            "1:79: sequence_batching.control_input: the server doesn't feed START (CONTROL_SEQUENCE_START): if the model has that input, "
            "every client must send it as any other",
        ),
        (
            "instance_group [ { gpus: 0 }, { gpus: 1 } ]",
            "1:18: instance_group: a model's lanes are on one device: the first that is named",
        ),
        (
            "optimization { execution_accelerators { gpu_execution_accelerator: [ { name: 'tensorrt' "
            "parameters { key: 'precision_mode' value: 'FP16' } } ] } }",
            "1:70: optimization.execution_accelerators.gpu_execution_accelerator: precision lies in the file: "
            "`tidegate export --precisions fp16` makes such a variant",
        ),
        (
            "optimization { execution_accelerators { cpu_execution_accelerator: [ { name: 'openvino' } ] } }",
            "1:70: optimization.execution_accelerators.cpu_execution_accelerator: the model's file runs as it is, not through openvino",
        ),
        (
            "optimization { execution_accelerators { gpu_execution_accelerator: [ { name: 'cuda' "
            "parameters { key: 'enable_cuda_graph' value: '1' } } ] } }",
            "1:85: optimization.execution_accelerators.gpu_execution_accelerator.parameters: nothing here acts on 'enable_cuda_graph'",
        ),
    ],
)
def test_what_is_passed_over_is_told_once(tmp_path: Path, text: str, warning: str) -> None:
    entry = written(tmp_path, text)
    assert passed_over(entry) == (f"{entry / 'config.pbtxt'}:{warning}",)
    read_model_config(entry)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size: x", ":1:17: 'max_batch_size: x': Couldn't parse integer: x"),
        ("max_batch_siz: 4", ":1:1: unknown field 'max_batch_siz' of ModelConfig; did you mean 'max_batch_size'?"),
        (
            "\ninput {\n  nam: 'x'\n}",
            ":3:3: unknown field 'nam' of ModelInput; did you mean 'name'?",
        ),
        ("input { name: 'x'", ':1:15: Expected "}"'),
        ("max_batch_size: -4", ":1:1: max_batch_size: input should be greater than or equal to 1, got '-4'"),
        (
            "\ndynamic_batching {\n priority_levels: 99 }",
            ":3:2: dynamic_batching.priority_levels: input should be less",
        ),
        (
            "max_batch_size: 4\ndynamic_batching {\n  preferred_batch_size: [ 8 ]\n}",
            ":3:3: dynamic_batching.preferred_batch_size: preferred_rows: 8 is more than max_rows, 4",
        ),
        ("name: 'other'", ":1:1: name: is 'other', but the folder, whose name clients ask for, is 'm'"),
        ("input { name: 'x' dims: [ -2 ] }", ":1:19: input.dims: input should be greater than or equal to -1"),
        ("default_model_filename: '../m.onnx'", ":1:1: default_model_filename: "),
        ("version_policy { specific { versions: [0] } }", ":1:29: version_policy.specific.versions: a version is a whole number from 1"),
        (
            "input { name: 'x' dims: [ 4 ] reshape { shape: [ 2, 3 ] } }",
            ":1:39: input.reshape: reshape: [2, 3] hasn't as many",
        ),
        ("{" * 2000, ":1:1: "),
        ("input {" * 200, ":1:8: unknown field 'input' of ModelInput"),
    ],
)
def test_errors_name_file_line_column_and_field(tmp_path: Path, text: str, expected: str) -> None:
    entry = written(tmp_path, text)
    with pytest.raises(ModelDefect) as caught:
        read_model_config(entry)
    assert str(caught.value).startswith(f"{entry / 'config.pbtxt'}{expected}")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    entry = written(tmp_path, "")
    (entry / "config.pbtxt").write_bytes(b"name: \xff")
    with pytest.raises(ModelDefect, match="not text"):
        read_model_config(entry)


def test_model_yaml_wins(tmp_path: Path) -> None:
    entry = written(tmp_path, "max_batch_size: 8\nmetric_tags { key: 'a' value: 'b' }")
    (entry / "model.yaml").write_text("batching: {max_rows: 3}")
    assert read_model_config(entry).batching.max_rows == 3
    assert passed_over(entry) == ()


def test_the_table_names_fields_that_there_are() -> None:
    for message, names in UNDERSTOOD.items():
        descriptor: Any = TritonConfig.DESCRIPTOR
        for part in filter(None, message.split(".")):
            descriptor = descriptor.fields_by_name[part].message_type
            if descriptor.GetOptions().map_entry:
                descriptor = descriptor.fields_by_name["value"].message_type
        assert set(names) <= set(descriptor.fields_by_name)


@given(st.text(st.sampled_from("abc:{}<>[]\"'# \n,1"), max_size=60))
def test_places_never_fails_on_what_protobuf_reads(text: str) -> None:
    try:
        message = text_format.Parse(text, TritonConfig(), descriptor_pool=POOL)
    except text_format.ParseError:
        return
    assert {path[0] for path in places(text) if path} >= {field.name for field, _ in message.ListFields()}


# Overrides


def test_quoted_numbers_are_numbers() -> None:
    assert override_of('{"max_batch_size": "16"}') == {"batching": {"max_rows": 16}}
    assert override_of('{"maxBatchSize": 16, "dynamic_batching": {"max_queue_delay_microseconds": "100"}}') == {
        "batching": {"max_rows": 16, "max_wait": 0.0001}
    }
    assert override_of("{}") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "config: not JSON"),
        ("[]", "config: expected a JSON object, got list"),
        ("[" * 100_000, "config: not JSON"),
        ('{"max_batch": 1}', 'config: not a ModelConfig: Message type "inference.ModelConfig" has no field named "max_batch"'),
        ('{"max_batch_size": "x"}', "config: not a ModelConfig: "),
        ('{"max_batch_size": -1}', "config: max_batch_size: input should be greater than or equal to 1"),
        ('{"input": [{"name": "x", "data_type": "FP32"}]}', "config: not a ModelConfig: "),
    ],
)
def test_overrides_that_say_nothing_sensible(text: str, expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        override_of(text)
    assert str(caught.value).startswith(expected)


def test_an_override_is_laid_over_the_file(tmp_path: Path) -> None:
    entry = written(tmp_path, 'max_batch_size: 8\ninput { name: "x" dims: [ 3 ] }\ndynamic_batching { preferred_batch_size: 4 }')
    config = read_model_config(entry, override_of('{"max_batch_size": 6, "input": [{"name": "x", "dims": [5]}]}'))
    assert (config.batching.max_rows, config.batching.preferred_rows) == (6, (4,))
    assert config.inputs["x"].shape == (-1, 5)
    with pytest.raises(ModelDefect, match="preferred_rows: 4 is more than max_rows, 2"):
        read_model_config(entry, override_of('{"max_batch_size": 2}'))
    assert read_model_config(entry).batching.max_rows == 8


Values = st.recursive(st.integers() | st.lists(st.integers()), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8)
Tables = st.dictionaries(st.sampled_from("abc"), Values)


@given(Tables, Tables)
def test_laying_over(values: dict[str, Any], over: dict[str, Any]) -> None:
    both = laid_over(values, over)
    assert laid_over(both, over) == both
    assert both.keys() == values.keys() | over.keys()
    assert laid_over(values, {}) == values
    assert laid_over({}, over) == over
