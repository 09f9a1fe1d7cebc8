from pathlib import Path

import pytest

from server.config import VERSION
from server.errors import ModelDefect
from server.repository.configs.reading import read_model_config
from server.repository.declare.precision import Guard, Precision, Turn
from server.repository.model_config import (
    NOT_BUILT,
    Batching,
    Lanes,
    ModelConfig,
    OutputConfig,
    Queue,
    Tenant,
    TensorConfig,
    Versions,
    Warmup,
)

FULL = """
name: m
description: sorts letters
backend: onnxruntime
batching:
  max_rows: 32
  max_wait: 5ms
  latency_objective: 50ms
  preferred_rows: [8, 32]
  pad_axes: {x: [1], t: [1, 2]}
  pad_values: {x: -1.5, t: "-"}
  length_buckets: [16, 64]
queue:
  {max_rows: 256, max_bytes: 1MiB, timeout: 1s, on_late: reject, priorities: 2, tenants: {a: 3, b: {rows_per_s: 100, bytes_per_s: 10MiB}}}
precision:
  active: fp16
  policy: schedule
  ladder: [fp32, fp16, int8]
  schedule: ["00:30 fp32", "08:00 int8"]
  time_zone: UTC
  down_at: 0.9
  up_at: 0.6
  down_cool: 1s
  up_cool: 1m
  calm: 5s
  guard: {sample: 2%, budget: 3%, floor: 2, tolerate: 10%, distance: 0.2, reference: cpu, keep_worst: 3, keep_for: 1d, redact: [x]}
versions: {policy: [1, "3"]}
lanes: {count: 2, kind: process, device: cuda:0, threads: auto, memory_limit: 4GiB, pin: true}
warmup: {rows: [1, 8]}
inputs:
  x: {dtype: FP32, shape: [-1, 16], batch_axis: 0, max_shape: [64, 16]}
outputs:
  y: {labels: names.txt, pad_axes: [2]}
  z: {batch_axis: null}
"""


def read(folder: Path, text: str) -> ModelConfig:
    entry = folder / "m"
    entry.mkdir(exist_ok=True)
    (entry / "model.yaml").write_text(text)
    return read_model_config(entry)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ModelDefect) as caught:
        read(folder, text)
    return str(caught.value).removeprefix(f"{folder / 'm' / 'model.yaml'}:")


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, FULL) == ModelConfig(
        name="m",
        description="sorts letters",
        backend="onnxruntime",
        batching=Batching(
            max_rows=32,
            max_wait=0.005,
            latency_objective=0.05,
            preferred_rows=(8, 32),
            pad_axes={"x": (1,), "t": (1, 2)},
            pad_values={"x": -1.5, "t": "-"},
            length_buckets=(16, 64),
        ),
        queue=Queue(
            max_rows=256,
            max_bytes=1 << 20,
            timeout=1.0,
            on_late="reject",
            priorities=2,
            tenants={"a": Tenant(weight=3.0), "b": Tenant(rows_per_s=100.0, bytes_per_s=10 << 20)},
        ),
        precision=Precision(
            active="fp16",
            policy="schedule",
            ladder=("fp32", "fp16", "int8"),
            schedule=(Turn(1800, "fp32"), Turn(8 * 3600, "int8")),
            time_zone="UTC",
            down_at=0.9,
            up_at=0.6,
            down_cool=1.0,
            up_cool=60.0,
            calm=5.0,
            guard=Guard(
                sample=0.02,
                budget=0.03,
                floor=2.0,
                tolerate=0.1,
                distance=0.2,
                reference="cpu",
                keep_worst=3,
                keep_for=86400.0,
                redact=("x",),
            ),
        ),
        versions=Versions(policy=("1", "3")),
        lanes=Lanes(count=2, kind="process", device="cuda:0", threads=0, memory_limit=4 << 30, pin=True),
        warmup=Warmup(rows=(1, 8)),
        inputs={"x": TensorConfig(dtype="FP32", shape=(-1, 16), batch_axis=0, max_shape=(64, 16))},
        outputs={"y": OutputConfig(labels="names.txt", pad_axes=(2,)), "z": OutputConfig(batch_axis=None)},
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "batching:\nqueue:\ninputs: {}\n"])
def test_nothing_said_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == ModelConfig()


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    config = read_model_config(tmp_path)
    assert config == ModelConfig()
    assert (config.batching.max_rows, config.queue.max_rows, config.versions.policy) == (64, 1024, "latest")


def test_a_batch_axis_that_is_null_was_said(tmp_path: Path) -> None:
    outputs = read(tmp_path, "outputs: {a: {batch_axis: null}, b: {shape: [-1, 4]}}").outputs
    assert "batch_axis" in outputs["a"].model_fields_set
    assert "batch_axis" not in outputs["b"].model_fields_set


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batching:\n  max_row: 3", "2: batching.max_row: unknown key 'max_row'; did you mean 'max_rows'?"),
        ("\n\nbaching: {}", "3: baching: unknown key 'baching'; did you mean 'batching'?"),
        ("inputs:\n  x:\n    dtyp: FP32", "3: inputs.x.dtyp: unknown key 'dtyp'; did you mean 'dtype'?"),
        ("inputs: {x: {dtype: fp32}}", "1: inputs.x.dtype: unknown datatype 'fp32'; did you mean 'FP32'?"),
        ("lanes:\n  kind: thred", "2: lanes.kind: got 'thred'; did you mean 'thread'?"),
        ("lanes: {memory_limit: much}", "1: lanes.memory_limit: expected a size"),
        ("lanes: {device: gpu}", "1: lanes.device: "),
        ("lanes: {count: -1}", "1: lanes.count: "),
        ("lanes: {threads: many}", "1: lanes.threads: "),
        ("batching: {max_rows: 0}", "1: batching.max_rows: "),
        ("batching: {max_rows: 1.5}", "1: batching.max_rows: "),
        ("batching: {max_rows: 64\nqueue: 1", "2: "),
        ("batching: 3", "1: batching: "),
        ("batching: {max_rows: 1, max_rows: 2}", "1: key 'max_rows' is given twice (first in line 1)"),
        ("batching:\n  max_wait: 5 parsecs", "2: batching.max_wait: expected a duration with one of ns, us, "),
        ("batching: {latency_objective: 0}", "1: batching.latency_objective: input should be greater than 0, got '0'"),
        ("batching: {preferred_rows: [8, 8]}", "1: batching.preferred_rows: expected rising numbers, each once, got [8, 8]"),
        ("batching: {preferred_rows: [65]}", "1: batching: preferred_rows: 65 is more than max_rows, 64"),
        ("batching:\n  pad_axes:\n    x: [0]", "3: batching.pad_axes.x.0: axis 0 can't be padded: axis 0 counts rows, and axes"),
        ("batching: {pad_axes: {x: 1}}", "1: batching.pad_axes.x: expected a list of axes such as [1], got 1"),
        ("batching: {pad_axes: {x: [2, 1]}}", "1: batching.pad_axes.x: expected rising numbers, each once, got [2, 1]"),
        ("batching:\n  pad_axes: {x: [1]}\n  pad_values: {xs: 0}", "3: batching: pad_values: 'xs' has no pad_axes; did you mean 'x'?"),
        ("batching: {pad_values: {x: [1]}}", "1: batching.pad_values.x: expected a number, true, false or text, got [1]"),
        (
            "batching: {length_buckets: atuo}",
            "1: batching.length_buckets: expected auto, geometric or a list of lengths such as [16, 32, 64]; got",
        ),
        ("batching: {length_buckets: [0, 4]}", "1: batching.length_buckets: expected lengths from 1, got [0, 4]"),
        ("batching: {length_buckets: [8, 4]}", "1: batching.length_buckets: expected rising numbers, each once, got [8, 4]"),
        ("queue:\n  on_late: rejct", "2: queue.on_late: got 'rejct'; did you mean 'reject'?"),
        ("queue: {timeout: never}", "1: queue.timeout: expected a duration such as 5ms, 30s or 2m, got 'never'"),
        ("queue: {max_bytes: lots}", "1: queue.max_bytes: expected a size such as 256KiB, 64MiB or 1GiB, got 'lots'"),
        ("queue: {priorities: 0}", "1: queue.priorities: "),
        ("queue: {tenants: {a: -1}}", "1: queue.tenants.a.weight: input should be greater than 0, got '-1'"),
        ("queue:\n  tenants:\n    a: {wieght: 3}", "3: queue.tenants.a.wieght: unknown key 'wieght'; did you mean 'weight'?"),
        ("queue: {tenants: {a b: 1}}", "1: queue.tenants: a tenant's name is 1 to 64 letters, digits and _.@- and not 'other', got 'a b'"),
        (
            "queue: {tenants: {other: 1}}",
            "1: queue.tenants: a tenant's name is 1 to 64 letters, digits and _.@- and not 'other', got 'other'",
        ),
        (
            "precision:\n  ladder: [fp32, fp32]",
            "2: precision.ladder: expected each precision once, the most exact one first, got fp32, fp32",
        ),
        ("precision:\n  policy: ladder", "1: precision: ladder: policy ladder needs at least two precisions"),
        ("precision:\n  policy: ladder\n  ladder: [fp32]", "3: precision: ladder: policy ladder needs at least two precisions"),
        ("precision: {policy: lader}", "1: precision.policy: got 'lader'; did you mean 'ladder'?"),
        ("precision: {policy: schedule}", "1: precision: schedule: policy schedule needs at least one line"),
        (
            "precision:\n  schedule:\n    - 08:00 fp32\n    - 8:00 int8",
            "4: precision.schedule.1: expected a time of the day and a precision such as \"08:00 fp32\", got '8:00 int8'",
        ),
        ('precision: {schedule: ["24:00 fp32"]}', "1: precision.schedule.0: expected a time of the day"),
        ('precision: {schedule: ["09:00 a", "08:00 b"]}', "1: precision.schedule: expected rising times of the day, but 08:00 comes after"),
        ("precision:\n  time_zone: Europe/Belrin", "2: precision.time_zone: no such time zone on this machine: 'Europe/Belrin'"),
        ("precision:\n  time_zone: ../etc", "2: precision.time_zone: no such time zone"),
        ("precision:\n  down_at: 0.7\n\n  up_at: 0.7", "4: precision: up_at: 0.7 must be less than down_at, 0.7"),
        ("precision: {guard: {sampel: 1%}}", "1: precision.guard.sampel: unknown key 'sampel'; did you mean 'sample'?"),
        ("precision:\n  guard:\n    sample: 101%", "3: precision.guard.sample: expected a share between 0 and 1"),
        ("precision: {guard: {tolerate: 100%}}", "1: precision.guard.tolerate: input should be less than 1"),
        ("precision: {guard: {reference: gpu}}", "1: precision.guard.reference: got 'gpu'"),
        ("precision: {guard: {keep_for: 0}}", "1: precision.guard.keep_for: input should be greater than 0"),
        ("inputs: {x: {pad_axes: [1]}}", "1: inputs.x.pad_axes: unknown key 'pad_axes'"),
        ("versions: {policy: lates}", "1: versions.policy: expected latest, all or a list of versions such as [1, 3]; got 'lates'"),
        ("versions: {policy: []}", "1: versions.policy: expected latest, all or a list"),
        ("versions: {policy: [0]}", "1: versions.policy: a version is a whole number from 1, got 0"),
        ("versions: {policy: ['01']}", "1: versions.policy: a version is a whole number from 1, got '01'"),
        ("versions: {policy: [true]}", "1: versions.policy: a version is a whole number from 1, got True"),
        ("inputs: {x: {batch_axis: 1}}", "1: inputs.x.batch_axis: expected 0, or null where the tensor isn't per row, got 1"),
        ("inputs: {x: {shape: [-2]}}", "1: inputs.x.shape.0: "),
        ("name: other", "1: name: is 'other', but the folder, whose name clients ask for, is 'm'"),
        ("- a\n- b", "1: expected keys and values, got list"),
        ("a: !!python/object/apply:os.system [ls]", "1: tag "),
        ("inputs: &a {x: *a}", "1: "),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("key", [(*section, word) for section, words in NOT_BUILT.items() for word in words])
def test_later_keys_are_refused_by_name(tmp_path: Path, key: tuple[str, ...]) -> None:
    text = f"{key[-1]}: 1" if len(key) == 1 else f"{key[0]}: {{{key[1]}: 1}}"
    assert refusal(tmp_path, text) == f"1: {'.'.join(key)}: isn't built yet in tidegate {VERSION}"


@pytest.mark.parametrize("key", [(*section, word) for section, words in NOT_BUILT.items() for word in words])
def test_later_keys_are_not_built_indeed(key: tuple[str, ...]) -> None:
    """A key that is built must leave the list."""
    model = ModelConfig if len(key) == 1 else ModelConfig.model_fields[key[0]].annotation
    assert key[-1] not in model.model_fields  # type: ignore[union-attr]


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    assert "larger than" in refusal(tmp_path, "# " + "x" * (1 << 20))


def test_a_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").mkdir()
    with pytest.raises(ModelDefect, match="can't be read"):
        read_model_config(tmp_path)
