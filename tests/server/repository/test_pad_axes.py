"""batching.pad_axes against the model: what the axes' names in the file settle, what model.yaml must say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.errors import ModelDefect
from server.padding import NO_PADDING, PadAxis
from server.repository.configs.reading import read_model_config
from server.repository.onnx_files import Value
from server.repository.pad_axes import padding_of
from tests.server.models import embedding_model, place, place_with_manifest
from tests.server.repository.test_loader import described

IDS = Value("ids", "INT64", (-1, -1), ("batch", "sequence"))
MASK = Value("mask", "INT64", (-1, -1), ("batch", "sequence"))
IMAGE = Value("image", "FP16", (-1, 3, -1, -1), ("batch", "", "height", "width"))
POOLED = Value("pooled", "FP32", (-1, 4), ("batch", ""))
TOKENS = Value("tokens", "FP32", (-1, -1, 4), ("batch", "sequence", ""))


def asked(folder: Path, yaml: str, inputs: list[Value], outputs: list[Value]):  # type: ignore[no-untyped-def]
    (folder / "model.yaml").write_text(yaml)
    return padding_of(folder, read_model_config(folder), inputs, outputs)


def refusal(folder: Path, yaml: str, inputs: list[Value], outputs: list[Value]) -> str:
    with pytest.raises(ModelDefect) as caught:
        asked(folder, yaml, inputs, outputs)
    return str(caught.value).removeprefix(f"{folder / 'model.yaml'}:")


def test_nothing_is_padded_where_nothing_is_said(tmp_path: Path) -> None:
    assert asked(tmp_path, "", [IDS], [TOKENS]) is NO_PADDING
    assert not NO_PADDING


def test_an_output_is_cut_by_the_name_that_the_file_gives_its_axis(tmp_path: Path) -> None:
    padding = asked(tmp_path, "batching: {pad_axes: {ids: [1], mask: [1]}}", [IDS, MASK], [POOLED, TOKENS])
    assert padding.inputs == {"ids": (PadAxis(1, "sequence"),), "mask": (PadAxis(1, "sequence"),)}
    assert padding.outputs == {"tokens": (PadAxis(1, "sequence"),)}
    assert padding.named == {"sequence"}
    assert padding.values == {"ids": 0, "mask": 0}


def test_two_axes_of_one_input(tmp_path: Path) -> None:
    heat = Value("heat", "FP32", (-1, -1, -1), ("batch", "width", "height"))
    padding = asked(tmp_path, "batching: {pad_axes: {image: [2, 3]}, pad_values: {image: -0.5}}", [IMAGE], [heat])
    assert padding.outputs == {"heat": (PadAxis(1, "width"), PadAxis(2, "height"))}
    assert padding.values["image"] == np.float16(-0.5)
    assert padding.values["image"].dtype == np.float16


def test_an_axis_that_must_be_alike_needs_no_cut(tmp_path: Path) -> None:
    extra = Value("extra", "FP32", (-1, -1), ("batch", "width"))
    wide = Value("wide", "FP32", (-1, -1), ("batch", "width"))
    assert asked(tmp_path, "batching: {pad_axes: {ids: [1]}}", [IDS, extra], [wide]).outputs == {}


def test_what_model_yaml_says_of_an_output_comes_first(tmp_path: Path) -> None:
    odd = Value("odd", "FP32", (-1, -1), ("batch", "2*sequence"))
    assert asked(tmp_path, "batching: {pad_axes: {ids: [1]}}\noutputs: {odd: {pad_axes: []}}", [IDS], [odd]).outputs == {}
    said = asked(tmp_path, "batching: {pad_axes: {ids: [1]}}\noutputs: {odd: {pad_axes: [1]}}", [IDS], [odd])
    assert said.outputs == {"odd": (PadAxis(1, "sequence"),)}


def test_names_that_the_exporter_made_up_tie_nothing(tmp_path: Path) -> None:
    ids = IDS._replace(axes=("ids_dynamic_axes_0", "ids_dynamic_axes_1"))
    mask = MASK._replace(axes=("mask_dynamic_axes_0", "mask_dynamic_axes_1"))
    tokens = TOKENS._replace(axes=("tokens_dynamic_axes_0", "tokens_dynamic_axes_1", ""))
    yaml = "batching: {pad_axes: {ids: [1], mask: [1]}}\noutputs: {tokens: {pad_axes: [1]}}"
    padding = asked(tmp_path, yaml, [ids, mask], [tokens])
    assert {axis for axes in (*padding.inputs.values(), *padding.outputs.values()) for axis in axes} == {PadAxis(1, "axis 1")}
    assert padding.named == frozenset()


@pytest.mark.parametrize(
    ("datatype", "said", "value"),
    [
        ("INT64", "7", 7),
        ("BOOL", "", False),
        ("BOOL", "true", True),
        ("BYTES", "", b""),
        ("BYTES", "'[PAD]'", b"[PAD]"),
        ("FP32", "1", 1.0),
    ],
)
def test_what_fills(tmp_path: Path, datatype: str, said: str, value: object) -> None:
    yaml = f"batching: {{pad_axes: {{ids: [1]}}{f', pad_values: {{ids: {said}}}' if said else ''}}}"
    found = asked(tmp_path, yaml, [IDS._replace(datatype=datatype)], []).values["ids"]
    assert found == value


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("batching:\n  pad_axes:\n    idz: [1]", "3: batching.pad_axes.idz: the model has no input of this name; did you mean 'ids'?"),
        ("batching:\n  pad_axes: {ids: [2]}", "2: batching.pad_axes.ids: axis 2 of input 'ids', which has 2 axes: [-1, -1]"),
        (
            "batching: {pad_axes: {image: [1]}}",
            "1: batching.pad_axes.image: axis 1 of input 'image' is always 3 long; only one that varies can be padded",
        ),
        (
            "batching: {pad_axes: {open: [1]}}",
            "1: batching.pad_axes.open: the file doesn't say the shape of input 'open', so inputs.open.shape",
        ),
        (
            "batching:\n  pad_axes: {ids: [1]}\n  pad_values: {ids: 1.5}",
            "3: batching.pad_values.ids: input 'ids' is INT64: expected a whole number from -9223372036854775808 to 9223372036854775807",
        ),
        (
            "batching: {pad_axes: {ids: [1]}, pad_values: {ids: a}}",
            "1: batching.pad_values.ids: input 'ids' is INT64: expected a number, got 'a'",
        ),
        (
            "batching: {pad_axes: {image: [2]}, pad_values: {image: -1e9}}\noutputs: {tokens: {pad_axes: []}}",
            "1: batching.pad_values.image: input 'image' is FP16: -1000000000.0 is beyond what float16 holds",
        ),
        (
            "batching: {pad_axes: {image: [2]}}",
            "1: batching.pad_axes: it isn't clear how to cut padding from output 'tokens': axis 1 varies and is named 'sequence', so it "
            "can't be tied to axis 2 of input 'image' (height). Say `outputs: {tokens: {pad_axes: [1]}}` where it's as long as the input, "
            "or `[]` where it isn't",
        ),
        ("outputs:\n  tokens: {pad_axes: [1]}", "2: outputs.tokens.pad_axes: no input is padded: batching.pad_axes says which"),
        (
            "batching: {pad_axes: {ids: [1]}}\noutputs: {tokens: {pad_axes: [2]}}",
            "2: outputs.tokens.pad_axes: axis 2 of output 'tokens', which is [-1, -1, 4]; only one that varies can be padded",
        ),
        (
            "batching: {pad_axes: {image: [2, 3]}}\noutputs: {tokens: {pad_axes: [1]}}",
            "2: outputs.tokens.pad_axes: axis 1 of output 'tokens' could be any of height, width; name it in the model's file",
        ),
    ],
)
def test_what_cannot_be_padded_is_refused_with_its_line(tmp_path: Path, yaml: str, message: str) -> None:
    tokens = TOKENS if "ids" not in yaml or "tokens" in yaml else POOLED
    inputs = [IDS if "image" not in yaml else POOLED._replace(name="other"), IMAGE, Value("open", "FP32", None)]
    assert refusal(tmp_path, yaml, inputs, [tokens]).startswith(message)


def test_an_output_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, "batching: {pad_axes: {ids: [1]}}", [IDS], [Value("y", "FP32", None)])
    assert found.startswith("1: batching.pad_axes: it isn't clear how to cut padding from output 'y': the file doesn't say its shape")


def test_the_loader_reads_names_from_the_file(tmp_path: Path) -> None:
    bare = described(place(tmp_path, "bare", embedding_model, yaml="batching: {pad_axes: {tokens: [1]}}"))
    assert bare.padding.inputs == {"tokens": (PadAxis(1, "L"),)}
    place_with_manifest(tmp_path, "exported")
    assert described(tmp_path / "exported").padding is NO_PADDING
