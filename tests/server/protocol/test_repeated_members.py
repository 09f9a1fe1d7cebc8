"""A member that an object has twice: the first counts, as in Triton, however it's written and whatever else holds colons and quotes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messages import InferRequest
from server.protocol import json_codec
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.head import _repeats_members, parse_head
from server.protocol.reply import Reply

TENSOR = '"name":"x","datatype":"INT32","shape":[2],"data":[1,2]'
INPUTS = f'"inputs":[{{{TENSOR}}}]'

Members = list[tuple[str, Any]]


def decoded(text: str) -> tuple[InferRequest, Reply]:
    """By every way in: a body of each type, and a head twice, the second time from what was kept."""
    body = text.encode()
    decoder = BinaryDecoder()
    found = [json_codec.decode(kind(body), "m", "") for kind in (bytes, bytearray, memoryview)]
    found += [decoder.decode(body, len(body), "m", "") for _ in range(2)]
    first, reply = found[0]
    for other, other_reply in found[1:]:
        assert {name: array.tolist() for name, array in other.inputs.items()} == {n: a.tolist() for n, a in first.inputs.items()}
        assert (other.id, other.outputs, dict(other.parameters)) == (first.id, first.outputs, dict(first.parameters))
        assert (other_reply.id, other_reply.binary_default, dict(other_reply.binary)) == (
            reply.id,
            reply.binary_default,
            dict(reply.binary),
        )
    return first, reply


@pytest.mark.parametrize(
    "text",
    [
        f'{{"id":"a","id":"b",{INPUTS}}}',
        f'{{"id":"a",{INPUTS},"id":"b"}}',
        f'{{"id" : "a",{INPUTS},"id"\n\t:"b"}}',
        f'{{"id" : "a",{INPUTS},"id":"b","note":"\\":"}}',
        f'{{"id":"a",{INPUTS},"i\\u0064":"b"}}',
        f'{{"i\\u0064":"a",{INPUTS},"id":"b"}}',
        f'{{"id":"a","inputs":[{{{TENSOR},"data":[3,4]}}],"inputs":[]}}',
        f'{{"id":"a","inputs":[{{{TENSOR},"shape":[3],"name":"y","datatype":"FP32"}}]}}',
        f'{{"id":"a","inputs":[{{{TENSOR},"data":[NaN,Infinity]}}]}}',
    ],
)
def test_the_first_counts(text: str) -> None:
    request, reply = decoded(text)
    assert (request.id, reply.id) == ("a", "a")
    assert {name: array.tolist() for name, array in request.inputs.items()} == {"x": [1, 2]}


def test_in_parameters_and_outputs() -> None:
    outputs = '"outputs":[{"name":"y","name":"z","parameters":{"binary_data":true,"binary_data":false}}]'
    request, reply = decoded(f'{{{INPUTS},{outputs},"parameters":{{"priority":1,"priority":2}},"parameters":{{"other":3}}}}')
    assert dict(request.parameters) == {"priority": 1}
    assert dict(reply.binary) == {"y": True}


def test_the_size_of_binary_values() -> None:
    head = b'{"inputs":[{"name":"x","datatype":"INT32","shape":[2],"parameters":{"binary_data_size":8,"binary_data_size":80}}]}'
    request, _ = BinaryDecoder().decode(head + np.array([5, 6], np.int32).tobytes(), len(head), "m", "")
    assert request.inputs["x"].tolist() == [5, 6]


TEXTS = st.text(st.sampled_from('a"\\:\n\t {}[],é'), max_size=6)
SPACES = st.sampled_from(["", "", "", " ", "\n\t", "  "])


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Members]:
    """The text of a request of strings, with any members twice or more, and its members in order."""
    strings = draw(st.lists(TEXTS, min_size=1, max_size=4))
    tensor: Members = [("name", draw(TEXTS.filter(bool))), ("datatype", "BYTES"), ("shape", [len(strings)]), ("data", strings)]
    again = draw(st.lists(st.tuples(st.sampled_from(["name", "data", "unknown", ":"]), TEXTS), max_size=3))
    members: Members = [
        ("id", draw(TEXTS)),
        ("inputs", [tensor + again]),
        ("parameters", draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=4))),
    ]
    members += draw(st.lists(st.tuples(st.sampled_from(["id", "inputs", "parameters", "x", '":']), TEXTS), max_size=3))

    def written(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return "{" + ",".join(f"{json.dumps(k)}{draw(SPACES)}:{draw(SPACES)}{written(v)}" for k, v in value) + "}"
        if isinstance(value, list) and not value:
            return "{}"
        if isinstance(value, list):
            return "[" + ",".join(map(written, value)) + "]"
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    return written(members), members


@given(requests())
def test_whatever_the_strings_hold(drawn: tuple[str, Members]) -> None:
    text, members = drawn
    head = parse_head(text.encode())
    first: dict[str, Any] = dict(reversed(members))
    tensor: dict[str, Any] = dict(reversed(first["inputs"][0]))
    assert head.reply.id == first["id"]
    assert [(item.name, item.data) for item in head.inputs] == [(tensor["name"], tensor["data"])]
    assert dict(head.parameters) == dict(reversed(first["parameters"]))


def test_only_a_text_that_seems_to_repeat_something_is_parsed_again() -> None:
    texts = ["", "a: b", "http://host:80/a", '"', "\\", "12:30:00"]
    tensor = {"name": "a:b", "datatype": "BYTES", "shape": [len(texts)], "data": texts, "parameters": {"custom": 1}}
    document = {"id": "7:8", "inputs": [tensor], "outputs": [{"name": "y:", "parameters": {"binary_data": True}}]}
    for text in (orjson.dumps(document), json.dumps(document, indent=1).encode(), json.dumps(document, separators=(" ,", " : ")).encode()):
        assert not _repeats_members(text, document)
        assert _repeats_members(text.replace(b"7:8", b":"), document)
