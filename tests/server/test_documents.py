import contextlib
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from server.documents import MAX_BYTES, Document, parse_yaml, read_yaml
from server.errors import ConfigError, ModelDefect, TidegateError

FILE = Path("model.yaml")


class Queue(BaseModel):
    model_config = ConfigDict(extra="forbid")
    max_rows: int = 1024
    on_late: Literal["serve", "reject"] = "serve"


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    queue: Queue = Queue()
    models: dict[str, Queue] = {}
    steps: tuple[Queue, ...] = ()
    which: Literal["all"] | list[int] = "all"
    maybe: Queue | None = None


def parse(text: str) -> Document:
    return parse_yaml(text, FILE)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text).read_as(Model)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0644", 644),
        ("0x10", 16),
        ("0o17", 15),
        ("-5", -5),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("5.", 5.0),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ("5ms", "5ms"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_plain_scalars_are_yaml_1_2(text: str, value: Any) -> None:
    assert parse(f"key: {text}").data == {"key": value}


def test_keys_are_text_and_know_their_lines() -> None:
    document = parse("# head\nrouting:\n  weights:\n    1: 95\n    '2': 5\nlist:\n- a\n- b: 1\n")
    assert document.data == {"routing": {"weights": {"1": 95, "2": 5}}, "list": ["a", {"b": 1}]}
    assert document.where(("routing", "weights", "2")) == "model.yaml:5"
    assert document.where(("list", 1, "b")) == "model.yaml:8"
    assert document.where(("routing", "absent", "deeper")) == "model.yaml:2"
    assert document.where(("absent",)) == "model.yaml:2"


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing but a comment\n")
    assert read_yaml(file).data == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nname: b", "model.yaml:2: key 'name' is given twice (first in line 1)"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "model.yaml:3: merge keys"),
        ("a: !!python/object:os.system x", "model.yaml:1: tag"),
        ("a: !mine [1]", "model.yaml:1: tag"),
        ("? [a, b]\n: 1", "model.yaml:1: a key must be text"),
        ("a: &x [*x]", "model.yaml:1: an alias inside what it stands for"),
        ("a: " + "[" * 40 + "]" * 40, "model.yaml:1: nested deeper than 32 levels"),
        ("a: " + "9" * 101, "model.yaml:1: a number of more than 100 digits"),
        ("- a\n- b", "model.yaml:1: expected keys and values, got list"),
        ("a: [1", "model.yaml:1:"),
        ("a: b: c", "model.yaml:1:"),
        ("a: 1\n---\nb: 2", "model.yaml:2: but found another document"),
        ("a: \x00", "model.yaml: not YAML"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_aliases_that_expand_beyond_bounds_are_refused() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 20000 values" in refusal("\n".join(levels))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nqueue:\n  max_row: 5", "model.yaml:3: queue.max_row: unknown key 'max_row'; did you mean 'max_rows'?"),
        ("nam: a", "model.yaml:1: nam: unknown key 'nam'; did you mean 'name'?"),
        ("queue: {}", "model.yaml:1: name: must be given"),
        ("name: a\nqueue: {on_late: rejct}", "model.yaml:2: queue.on_late: got 'rejct'; did you mean 'reject'?"),
        ("name: a\nqueue: {on_late: 17}", "model.yaml:2: queue.on_late: got '17'; expected one of serve, reject"),
        ("name: a\nqueue:\n  max_rows: many", "model.yaml:3: queue.max_rows: input should be a valid integer"),
        (
            "name: a\nmodels:\n  m:\n    max_rws: 1",
            "model.yaml:4: models.m.max_rws: unknown key 'max_rws'; did you mean 'max_rows'?",
        ),
        (
            "name: a\nsteps:\n- max_rows: 1\n- on_lat: 1",
            "model.yaml:4: steps.1.on_lat: unknown key 'on_lat'; did you mean 'on_late'?",
        ),
        ("name: a\nwhich: [1, x]", "model.yaml:2: which"),
        ("name: a\nmaybe: {zzz: 1}", "model.yaml:2: maybe.zzz: unknown key 'zzz'; expected one of max_rows, on_late"),
    ],
)
def test_findings_name_file_line_key_and_the_nearest_word(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_several_findings_are_told_at_once() -> None:
    message = refusal("nme: a\nqueu: {}")
    assert "model.yaml:1: nme" in message
    assert "model.yaml:2: queu" in message


@pytest.mark.parametrize("raising", [ConfigError, ModelDefect])
def test_files_that_cannot_be_read(tmp_path: Path, raising: type[TidegateError]) -> None:
    with pytest.raises(raising, match="No such file"):
        read_yaml(tmp_path / "absent.yaml", raising)
    with pytest.raises(raising, match="Is a directory"):
        read_yaml(tmp_path, raising)
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(raising, match="larger than"):
        read_yaml(big, raising)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    with pytest.raises(raising, match="not YAML"):
        read_yaml(binary, raising)


def test_a_pipe_does_not_block_the_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml(pipe)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_bytes_give_a_document_or_the_error(content: bytes | str) -> None:
    with contextlib.suppress(ConfigError):
        parse_yaml(content, FILE).read_as(Model)
