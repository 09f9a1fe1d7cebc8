"""What is kept of JSON requests changes nothing but the time that the next one takes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, TidegateError
from server.protocol import json_codec, json_forms
from server.protocol.head import Head, Layouts, parse_head
from server.protocol.json_forms import JsonDecoder


def decoded(decode: Any, body: bytes) -> Any:
    """Everything that a decoder says of a body, in a form that compares; the error's text where it refuses."""
    try:
        request, reply = decode(body, "m", "1")
    except TidegateError as error:
        return type(error), str(error)
    values = {name: (array.dtype, array.shape, array.tolist()) for name, array in request.inputs.items()}
    return repr(values), request.layout.tensors, request.id, request.outputs, dict(request.parameters), reply


def plain(body: bytes, model: str, version: str) -> Any:
    return json_codec.decode(body, model, version)


def request(data: str = "[1,2]", *, name: str = "X", lead: str = "", more: str = "", tail: str = "") -> bytes:
    return f'{{{lead}"inputs":[{{"name":"{name}","shape":[1,2],"datatype":"FP32","data":{data}{more}}}]{tail}}}'.encode()


def test_a_form_is_learned_at_the_second_coming_and_used_from_the_third(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []

    def counted(text: bytes) -> Head:
        parsed.append(text)
        return parse_head(text)

    monkeypatch.setattr(json_forms, "parse_head", counted)
    decoder = JsonDecoder(Layouts())
    layouts = []
    for number in range(5):
        got, _ = decoder.decode(request(f"[{number},0.5]"), "m", "1")
        np.testing.assert_array_equal(got.inputs["X"], [[number, 0.5]])
        layouts.append(got.layout)
    assert len(parsed) == 3, "the two bodies, and the form that was tried"
    assert len(set(map(id, layouts))) == 1


def test_a_number_in_front_of_each_request_does_not_hide_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = JsonDecoder(Layouts())
    for number in range(3):
        decoder.decode(request(lead=f'"id":"{number}",'), "m", "1")
    monkeypatch.setattr(json_forms, "parse_head", lambda text: pytest.fail("parsed again"))
    got, reply = decoder.decode(request("[3,4]", lead='"id":"ninety",'), "m", "1")
    assert (got.id, reply.id) == ("ninety", "ninety")
    np.testing.assert_array_equal(got.inputs["X"], [[3, 4]])


@pytest.mark.parametrize(
    "other",
    [
        request("[NaN,1]"),
        request("[1]"),
        request('["a",1]'),
        request('[{"data":1},2]'),
        request("[1,2"),
        request("[1,2]]"),
        request('[1,2],"data":[3,4]'),
        request("[1,2] "),
        request("null"),
        request("[[1],[2]]"),
        request("[1,2]", more=',"data":[3,4]'),
        request("[1,2]", more=',"parameters":{"data":5}'),
        request("[1,2]", tail=',"outputs":[{"name":"Y"}]'),
        request("[1,2]", name='"data\\":'),
        request("[1,2]", name="é"),
        request('[1,2],"shape":[2,1]'),
        b'{"inputs":[{"data":[1,2],"name":"X","shape":[1,2],"datatype":"FP32"}]}',
        b'{"parameters":{"data":[1,2]},"inputs":[]}',
    ],
)
def test_whatever_follows_a_form_means_what_it_says(other: bytes) -> None:
    decoder = JsonDecoder(Layouts())
    for body in [request(), request(), request("[5,6]"), other, other, other, request("[7,8]"), other]:
        assert decoded(decoder.decode, body) == decoded(plain, body)


_texts = st.sampled_from(['"a"', '"data"', r'"\"data\":"', '"é"', "1", "true"])
_values = st.sampled_from(["[1,2]", " [0.5, -3] ", "[[1,2]]", "[]", "[1]", "[NaN,1]", '["x","y"]', "3", "[1,2],[3", "[1,2"])
_members = st.lists(
    st.one_of(
        st.builds('"data":{}'.format, _values),
        st.just('"name":"X"'),
        st.just('"shape": [1,2]'),
        st.just('"datatype":"FP32"'),
        st.builds('"parameters":{{"data":{}}}'.format, _texts),
        st.builds('"note":{}'.format, _texts),
    ),
    max_size=6,
)


@given(
    st.lists(st.tuples(_members, st.sampled_from(["", '"id":"7",', '"id":"é",', '"id":"7","id":"8",']), _values), min_size=1, max_size=4)
)
def test_any_requests_mean_the_same_with_forms_as_without(kinds: list[tuple[list[str], str, str]]) -> None:
    usual = ['"name":"X"', '"shape":[1,2]', '"datatype":"FP32"']
    decoder = JsonDecoder(Layouts())
    for members, lead, values in kinds:
        for _ in range(3):
            for inner in (members, [*usual, f'"data":{values}'], [*usual, '"data":[1,2]', *members]):
                body = f'{{{lead}"inputs":[{{{",".join(inner)}}}]}}'.encode()
                assert decoded(decoder.decode, body) == decoded(plain, body)


def test_what_is_kept_is_bounded() -> None:
    decoder = JsonDecoder(Layouts())
    for number in range(3 * json_forms.MAX_FORMS):
        for _ in range(2):
            decoder.decode(request(name=f"X{number}"), "m", "1")
        assert len(decoder._forms) <= json_forms.MAX_FORMS
        assert len(decoder._seen) <= json_forms.MAX_FORMS


def test_long_texts_are_not_kept() -> None:
    decoder = JsonDecoder(Layouts())
    long = json.dumps("x" * json_forms.MAX_TEXT)
    for _ in range(3):
        decoder.decode(request(lead=f'"note":{long},'), "m", "1")
        decoder.decode(request(tail=f',"note":{long}'), "m", "1")
        with pytest.raises(InvalidRequest):
            decoder.decode(request("[1]"), "m", "1")
    assert not decoder._forms
