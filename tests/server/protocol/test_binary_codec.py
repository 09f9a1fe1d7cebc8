"""Bodies with a head: every datatype comes out as it went in, as a view where it can be one, and lengths that lie are refused."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, TidegateError
from server.messages import RegionSlice, RequestedOutput, Shared, SharedInput
from server.protocol.binary_codec import MAX_CACHED_BYTES, MAX_ENTRIES, MAX_HEAD, BinaryDecoder
from server.protocol.head import Layouts
from server.protocol.json_codec import MAX_STRINGS
from server.protocol.reply import Reply
from server.tensors import Tensor, dtype_of
from tests.server.protocol.wire import assert_same, binary_request, raw, tensors

X = np.arange(16, dtype=np.float32).reshape(1, 16)
BODY, HEAD = binary_request({"INPUT0": X})


@given(st.lists(tensors(), min_size=1, max_size=3), st.sampled_from([bytes, bytearray, memoryview]))
def test_every_datatype_comes_out_as_it_went_in(arrays: list[Tensor], container: Any) -> None:
    inputs = {f"INPUT{index}": array for index, array in enumerate(arrays)}
    body, head = binary_request(inputs)
    decoder = BinaryDecoder()
    for _ in range(2):  # as new, then from the cache
        request, reply = decoder.decode(container(body), head, "m", "3")
        assert list(request.inputs) == list(inputs)
        for name, array in inputs.items():
            assert_same(request.inputs[name], array)
        assert request.layout.tensors == tuple((name, dtype_of(a).name, a.shape) for name, a in inputs.items())
        assert (request.model, request.version, request.id, request.outputs) == ("m", "3", "", ())
        assert reply == Reply()


def test_numbers_are_views_of_the_body() -> None:
    decoder = BinaryDecoder()
    for _ in range(2):
        request, _ = decoder.decode(BODY, HEAD, "m", "")
        assert np.shares_memory(request.inputs["INPUT0"], np.frombuffer(BODY, np.uint8))
        assert not request.inputs["INPUT0"].flags.writeable


def test_heads_that_agree_on_the_inputs_share_a_layout() -> None:
    layouts = Layouts()
    other, other_head = binary_request({"INPUT0": X}, outputs=[{"name": "y"}])
    first, _ = BinaryDecoder(layouts).decode(BODY, HEAD, "m", "")
    assert BinaryDecoder(layouts).decode(other, other_head, "m", "")[0].layout is first.layout
    decoder = BinaryDecoder()
    assert decoder.decode(BODY, HEAD, "m", "")[0].layout is decoder.decode(BODY, HEAD, "other", "")[0].layout


def test_the_id_is_read_whatever_it_holds_and_wherever_it_stands() -> None:
    decoder = BinaryDecoder()
    for request_id in ("", "1", "281474976710656", 'quote " and \\', "ünïcode", "line\nbreak", "x" * 1024, "</id>"):
        body, head = binary_request({"INPUT0": X}, id=request_id)
        for _ in range(2):
            request, reply = decoder.decode(body, head, "m", "")
            assert request.id == reply.id == request_id
            assert_same(request.inputs["INPUT0"], X)
    late = BODY[: HEAD - 1] + b',"id":"late"}'
    for _ in range(2):
        assert decoder.decode(late + raw(X), len(late), "m", "")[1].id == "late"


def test_heads_that_differ_in_the_id_alone_share_what_is_kept() -> None:
    decoder = BinaryDecoder()
    for number in range(100):
        body, head = binary_request({"INPUT0": X}, id=str(number))
        assert decoder.decode(body, head, "m", "")[0].id == str(number)
    assert len(decoder._plans) == 1


def test_an_id_given_twice_is_never_mixed_up() -> None:
    decoder = BinaryDecoder()
    for first, second in (("a", "b"), ("b", "b"), ("c", "b")):
        head = b'{"id":"%b","id":"%b",' % (first.encode(), second.encode()) + BODY[1:HEAD]
        assert decoder.decode(head + raw(X), len(head), "m", "")[1].id == first


def test_what_the_client_wants_back() -> None:
    outputs = [
        {"name": "a", "parameters": {"binary_data": True}},
        {"name": "b", "parameters": {"classification": 3, "unknown": [1]}},
        {"name": "c", "parameters": {"classification": 0, "binary_data": False}},
        {"name": "d"},
    ]
    parameters = {"binary_data_output": True, "priority": 1, "note": "x", "share": 0.5, "explain": True}
    body, head = binary_request({"INPUT0": X}, outputs=outputs, parameters=parameters)
    decoder = BinaryDecoder()
    for _ in range(2):
        request, reply = decoder.decode(body, head, "m", "")
        assert request.outputs == (RequestedOutput("a"), RequestedOutput("b", 3), RequestedOutput("c"), RequestedOutput("d"))
        assert dict(request.parameters) == {"priority": 1, "note": "x", "share": 0.5, "explain": True}
        assert (reply.binary_default, dict(reply.binary)) == (True, {"a": True, "b": False, "c": False, "d": False})


def test_a_head_that_is_the_whole_body_may_hold_the_values() -> None:
    body = orjson.dumps({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]}]})
    decoder = BinaryDecoder()
    for value in (3, 4):
        text = body.replace(b"3]}", b"%d]}" % value)
        assert decoder.decode(text, len(text), "m", "")[0].inputs["x"].tolist() == [[1, 2, value]]
    assert not decoder._plans


def test_values_in_json_and_in_bytes_mix() -> None:
    inputs = [
        {"name": "a", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
        {"name": "b", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]},
        {"name": "c", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
    ]
    head = orjson.dumps({"inputs": inputs})
    body = head + np.array([7, 8]).tobytes() + np.float32(0.5).tobytes()
    request, _ = BinaryDecoder().decode(body, len(head), "m", "")
    assert list(request.inputs) == ["a", "b", "c"]
    assert [array.tolist() for array in request.inputs.values()] == [[7, 8], [b"x", b"y"], [[0.5]]]


def test_heads_that_name_regions_are_known_too_and_keep_their_ids() -> None:
    decoder = BinaryDecoder()
    inputs = [
        {"name": "a", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
        {"name": "b", "datatype": "FP32", "shape": [2], "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}},
    ]
    for request_id in ("", "1", "28", 'quote " and \\', "ü"):
        for values in ([7, 8], [9, 10]):
            head = orjson.dumps({**({"id": request_id} if request_id else {}), "inputs": inputs})
            request, reply = decoder.decode(head + np.array(values).tobytes(), len(head), "m", "")
            assert request.id == reply.id == request_id
            assert request.inputs["a"].tolist() == values
            assert request.shared == Shared((SharedInput("b", "FP32", (2,), RegionSlice("r", 0, 8)),), {})
    assert len(decoder._shared_heads) == 4
    with pytest.raises(InvalidRequest, match="unexpected size for input 'a', expecting 16 additional bytes"):
        decoder.decode(head, len(head), "m", "")


def test_any_byte_but_zero_is_true_and_the_model_sees_one() -> None:
    head = orjson.dumps({"inputs": [{"name": "x", "datatype": "BOOL", "shape": [4], "parameters": {"binary_data_size": 4}}]})
    request, _ = BinaryDecoder().decode(head + b"\x00\x01\x02\xff", len(head), "m", "")
    assert request.inputs["x"].view(np.uint8).tolist() == [0, 1, 1, 1]


def one(datatype: str, shape: list[int], size: int) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}]})


@pytest.mark.parametrize(
    ("head", "values", "text"),
    [
        (one("FP32", [1, 4], 16), b"\0" * 15, "unexpected size for input 'x', expecting 1 additional bytes for model 'm'"),
        (one("FP32", [1, 4], 16), b"", "unexpected size for input 'x', expecting 16 additional bytes for model 'm'"),
        (one("FP32", [1, 4], 16), b"\0" * 17, "unexpected additional input data for model 'm'"),
        (one("FP32", [0, 4], 0), b"\0", "unexpected additional input data for model 'm'"),
        (b'{"inputs":[]}', b"\0", "unexpected additional input data for model 'm'"),
        (one("FP32", [1, 4], 15), b"\0" * 15, "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 15"),
        (one("FP32", [2**32, 2**32], 0), b"", "Expected 73786976294838206464, got 0"),
        (one("FP32", [1, 2**40], 16), b"\0" * 16, "Expected 4398046511104, got 16"),
        (one("BYTES", [1, 2**40], 16), b"\0" * 16, "Expected at least 4398046511104, got 16"),
        (one("BYTES", [2], 8), b"\x01\0\0\0a\0\0\0", "BYTES data ends before element 1 of 2"),
        (one("BYTES", [1], 5), b"\xff\xff\xff\xffa", "element 0 claims 4294967295 bytes, 1 are left"),
        (one("BYTES", [1], 6), b"\x01\0\0\0ab", "1 bytes are left after the 1 elements"),
        (one("BYTES", [0], 1), b"a", "1 bytes are left after the 0 elements"),
        (one("BYTES", [MAX_STRINGS + 1], 4 * MAX_STRINGS + 4), bytes(4 * MAX_STRINGS + 4), "at most 262144 elements"),
    ],
)
def test_sizes_that_lie(head: bytes, values: bytes, text: str) -> None:
    decoder = BinaryDecoder()
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            decoder.decode(head + values, len(head), "m", "")
        assert text in str(caught.value)


def test_a_known_head_with_other_lengths_is_refused_as_a_new_one_is() -> None:
    decoder = BinaryDecoder()
    decoder.decode(BODY, HEAD, "m", "")
    with pytest.raises(InvalidRequest, match="expecting 1 additional bytes"):
        decoder.decode(BODY[:-1], HEAD, "m", "")
    with pytest.raises(InvalidRequest, match="unexpected additional input data"):
        decoder.decode(BODY + b"x", HEAD, "m", "")
    for length in (-1, len(BODY) + 1, -HEAD):
        with pytest.raises(InvalidRequest, match=rf"should be in range \(0, {len(BODY)}\), got: {length}"):
            decoder.decode(BODY, length, "m", "")
    with pytest.raises(InvalidRequest, match="valid JSON"):  # without a model to ask, there is nothing to deduce from
        decoder.decode(BODY, 0, "m", "")
    assert_same(decoder.decode(BODY, HEAD, "m", "")[0].inputs["INPUT0"], X)


@given(tensors(), st.data())
def test_cut_and_changed_bodies_raise_nothing_but_our_errors(array: Tensor, data: st.DataObject) -> None:
    body, head = binary_request({"INPUT0": array}, id="7")
    decoder = BinaryDecoder()
    decoder.decode(body, head, "m", "")
    changed = bytearray(body[: data.draw(st.integers(0, len(body)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.one_of(st.just(head), st.integers(-3, len(body) + 3)))
    with contextlib.suppress(TidegateError):
        decoder.decode(bytes(changed), length, "m", "")
    assert_same(decoder.decode(body, head, "m", "")[0].inputs["INPUT0"], array)


def test_the_cache_is_bounded() -> None:
    decoder = BinaryDecoder()
    for number in range(2 * MAX_ENTRIES):
        body, head = binary_request({f"INPUT{number}": X}, outputs=[{"name": "o" * 200}])
        decoder.decode(body, head, "m", "")
    assert 0 < len(decoder._plans) <= MAX_ENTRIES
    for number in range(1000):
        body, head = binary_request({f"INPUT{number}": X}, parameters={"pad": "x" * (MAX_HEAD - 300)})
        decoder.decode(body, head, "m", "")
        assert sum(map(len, decoder._plans)) <= MAX_CACHED_BYTES
    before = len(decoder._plans)
    body, head = binary_request({"INPUT0": X}, parameters={"pad": "x" * MAX_HEAD})
    assert_same(decoder.decode(body, head, "m", "")[0].inputs["INPUT0"], X)
    assert len(decoder._plans) == before
