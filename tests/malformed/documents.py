"""Inference requests over HTTP that must be refused: their bodies, made from tables of values that are wrong each in its own way.

They are for the models of conftest: `m` FP32 [N,16] of at most 8 rows, `echo_DATATYPE` [N,W], `pair` with inputs a and b.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.server.running import INFER, http

NESTED = 5000
BAD_REQUEST = (400,)


@dataclass(frozen=True, slots=True)
class Case:
    """A request as bytes, the statuses of which one must come, and a part of the text that must come with it. `hangs`: less comes than
    was said, so that nothing can follow on its connection."""

    request: bytes
    statuses: tuple[int, ...] = BAD_REQUEST
    text: str = ""
    hangs: bool = False


Cases = Iterator[tuple[str, Case]]
GOOD: Mapping[str, Any] = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}
WHOLE = json.dumps({"inputs": [GOOD]}).encode()


@dataclass(frozen=True, slots=True)
class Raw:
    """JSON that json.dumps wouldn't write, put where it stands."""

    text: str


def dumps(value: Any) -> bytes:
    """JSON with each Raw as it is."""
    raws: list[str] = []

    def default(item: Any) -> str:
        assert isinstance(item, Raw)
        raws.append(item.text)
        return f"\0raw{len(raws) - 1}\0"

    text = json.dumps(value, default=default)
    for index, raw in enumerate(raws):
        text = text.replace(f'"\\u0000raw{index}\\u0000"', raw)
    return text.encode()


def post(body: bytes, model: str = "m", headers: Mapping[str, str] | None = None) -> bytes:
    """A request to infer."""
    return http(INFER.format(model), body, headers=headers)


def changed(**changes: Any) -> bytes:
    """The good request with another input."""
    return dumps({"inputs": [{**GOOD, **changes}]})


def without(member: str) -> bytes:
    """The good request, whose input lacks a member."""
    return dumps({"inputs": [{key: value for key, value in GOOD.items() if key != member}]})


def binary(body: bytes, blob: bytes, length: str | None = None, model: str = "m") -> bytes:
    """A request with a binary part; `length` is what the header says instead of the truth."""
    return post(body + blob, model, {"inference-header-content-length": str(len(body)) if length is None else length})


def described(size: Any, shape: Any = (1, 16), datatype: Any = "FP32") -> bytes:
    """The head of a binary request."""
    return dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}]})


SHAPES: Mapping[str, Any] = {
    "none": [],
    "one axis": [16],
    "three axes": [1, 16, 1],
    "no rows": [0, 16],
    "no columns": [1, 0],
    "minus one row": [-1, 16],
    "both negative": [-1, -16],
    "a negative column": [1, -16],
    "15": [1, 15],
    "17": [1, 17],
    "too many rows": [9, 16],
    "swapped": [16, 1],
    "2^31 rows": [2**31, 16],
    "2^32 rows": [2**32, 16],
    "2^60 rows": [2**60, 16],
    "2^63 - 1 rows": [2**63 - 1, 16],
    "2^63 rows": [2**63, 16],
    "2^64 rows": [2**64, 16],
    "10^30 rows": [10**30, 16],
    "a product of 2^64": [2**32, 2**32],
    "a product that wraps to 16": [2**60 + 1, 16],
    "a product of 2^65": [2**32, 2**33],
    "2^40 columns": [1, 2**40],
    "empty with a huge axis": [0, 2**62],
    "halves": [1.5, 16],
    "a whole float": [Raw("1.0"), 16],
    "an exponent": [Raw("1e0"), 16],
    "text": ["1", "16"],
    "true": [True, 16],
    "null": [None, 16],
    "nested": [[1], 16],
    "an object": {"0": 1},
    "a string": "1,16",
    "a number": 16,
    "nothing": None,
    "NaN": [Raw("NaN"), 16],
    "33 axes": [1] * 33,
    "10,000 axes": [1] * 10_000,
}


def shapes() -> Cases:
    for name, shape in SHAPES.items():
        yield f"shape, JSON: {name}", Case(post(changed(shape=shape)))
        yield f"shape, binary: {name}", Case(binary(described(64, shape), bytes(64)))


DATATYPES: tuple[Any, ...] = (
    "FP31",
    "fp32",
    "",
    " FP32",
    "FP32\0",
    "TYPE_FP32",
    "float32",
    "STRING",
    "x" * 10_000,
    None,
    5,
    10.5,
    True,
    [],
    ["FP32"],
    {},
)
OTHERS = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP64", "BF16", "BYTES")


def datatypes() -> Cases:
    for datatype in DATATYPES:
        yield f"datatype: {str(datatype)[:20]!r} ({type(datatype).__name__})", Case(post(changed(datatype=datatype)), text="datatype")
    for datatype in OTHERS:
        data = {"BOOL": [True] * 16, "BYTES": ["1"] * 16}.get(datatype, [1] * 16)
        yield f"another datatype: {datatype}", Case(post(changed(datatype=datatype, data=data)), text=f"data-type is '{datatype}'")


WHOLE_NUMBERS: Mapping[str, tuple[int, int]] = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
NO_NUMBERS: Mapping[str, Any] = {
    "text": "1",
    "null": None,
    "true": True,
    "an object": {},
    "an empty list": [],
    "a list of two": [1, 2],
}
NO_WHOLE_NUMBERS: Mapping[str, Any] = {"2.5": 2.5, "1e-3": 1e-3, "NaN": Raw("NaN"), "Infinity": Raw("Infinity"), "10^200": 10**200}


def values() -> Cases:
    """Values that their datatype doesn't have, beside one that it has."""
    for datatype, (least, most) in WHOLE_NUMBERS.items():
        beyond = {"one too little": least - 1, "one too much": most + 1}
        for name, value in {**NO_NUMBERS, **NO_WHOLE_NUMBERS, **beyond}.items():
            yield f"value: {datatype} {name}", Case(post(_echo(datatype, [1, value]), f"echo_{datatype}"), text="'x'")
    for datatype in ("FP16", "BF16", "FP32", "FP64"):
        for name, value in NO_NUMBERS.items():
            yield f"value: {datatype} {name}", Case(post(_echo(datatype, [1.5, value]), f"echo_{datatype}"), text="'x'")
    for name, value in {"0": 0, "1": 1, "text": "true", "null": None, "a list": [True]}.items():
        yield f"value: BOOL {name}", Case(post(_echo("BOOL", [True, value]), "echo_BOOL"), text="'x'")
    for name, value in {"a number": 1, "null": None, "true": True, "an object": {}}.items():
        yield f"value: BYTES {name}", Case(post(_echo("BYTES", ["a", value]), "echo_BYTES"), text="'x'")


def _echo(datatype: str, data: list[Any]) -> bytes:
    return dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": datatype, "data": data}]})


ROW = [1.0] * 16
DATA: Mapping[str, Any] = {
    "15 values": ROW[1:],
    "17 values": [*ROW, 1.0],
    "none": [],
    "two rows for one": [ROW, ROW],
    "ragged": [ROW[:8], ROW[:9]],
    "nested once more": [[ROW, ROW]],
    "half nested": [ROW[:8], *ROW[:8]],
    "a number": 1.0,
    "a string": "1.0",
    "null": None,
    "true": True,
    "an object": {"0": 1.0},
    "nested 5,000 deep": Raw("[" * NESTED + "1" + "]" * NESTED),
    "nested 101 deep": Raw("[" * 101 + ",".join(["1"] * 16) + "]" * 101),
}


BLOB_SIZES: tuple[Any, ...] = (-1, 0, 60, 63, 65, 68, 2**31, 2**63, 2**64, 10**30, Raw("64.0"), "64", None, True, [64], {})


def data() -> Cases:
    for name, value in DATA.items():
        yield f"data: {name}", Case(post(changed(data=value)))
    for size in BLOB_SIZES:
        yield f"binary_data_size: {size!r}", Case(binary(described(size), bytes(64)))
    for length in (0, 1, 63, 65, 128, 4096):
        yield f"{length} bytes where 64 were said", Case(binary(described(64), bytes(length)))
    both = {**GOOD, "parameters": {"binary_data_size": 64}}
    yield "data and binary_data_size", Case(binary(dumps({"inputs": [both]}), bytes(64)), text="exactly one of")
    yield "neither", Case(post(without("data")), text="exactly one of")
    yield "binary_data_size without a binary part", Case(post(described(64)))
    lies = {
        "past the end": b"\xff\0\0\0a",
        "2^32 - 1": b"\xff\xff\xff\xff",
        "cut": b"\1\0\0",
        "too many": bytes(8),
        "a rest": bytes(5),
    }
    for name, blob in lies.items():
        head = described(len(blob), [1, 1], "BYTES")
        yield f"BYTES whose length is {name}", Case(binary(head, blob, model="echo_BYTES"))


LENGTHS = (
    "",
    "abc",
    "-1",
    "+64",
    "0x40",
    "1e2",
    "64.0",
    "64,64",
    "64 64",
    "100000",
    "9" * 400,
    "18446744073709551680",
    "٦٤".encode().decode("latin-1"),
)


def head_lengths() -> Cases:
    head = described(64)
    for text in LENGTHS:
        yield f"head length {text[:24]!r}", Case(binary(head, bytes(64), text), text="inference header size should be in range")
    for length in (1, len(head) // 2, len(head) - 1, len(head) + 1, len(head) + 64):
        yield f"head length {length}, not {len(head)}", Case(binary(head, bytes(64), str(length)))


@dataclass(frozen=True, slots=True)
class Member:
    """Wrong values of one member of a request, and what the text names."""

    name: str
    bad: tuple[Any, ...]
    text: str = ""


MEMBERS = (
    Member("inputs", (None, {}, "x", 5, True, [], [None], [5], ["x"], [[]], [{}], [GOOD, GOOD], [GOOD, {**GOOD, "name": "z"}])),
    Member("outputs", ({}, "y", 5, True, [None], [5], ["y"], [[]], [{}], [{"name": "z"}], [{"name": "y"}] * 2), "output"),
    Member("parameters", ([], "x", 5, True, None), "parameters"),
    Member("id", (5, None, [], {}, True, 1.5, "i" * 1025), "id"),
)
NAMES: tuple[Any, ...] = (None, 5, True, [], {}, "", "n" * 257, "n" * 100_000)
NO_OBJECTS: tuple[Any, ...] = (None, [], "x", 5)
OUTPUT_PARAMETERS: Mapping[str, tuple[Any, ...]] = {
    "binary_data": (None, 5, "true", [], {}),
    "classification": (None, "5", -1, 1.5, [], {}, True),
}
PARAMETERS: Mapping[str, tuple[Any, ...]] = {
    "timeout": ("soon", "5", None, -1, 1.5, 2**64, True, [], {}),
    "priority": ("high", "1", None, -1, 99, 1.5, 2**64, True, [], {}),
    "explain": ("yes", 5, None, [], {}),
    "binary_data_output": ("yes", 5, None, [], {}),
    "triton_x": (1,),
    "triton_final_response": (True,),
    "note": (None, [], {}, [1], {"a": 1}),
    "": ([],),
}


def members() -> Cases:
    """Members of a wrong type or with a wrong value."""
    for member in MEMBERS:
        for number, bad in enumerate(member.bad):
            yield f"{member.name} {number}: {str(bad)[:40]}", Case(post(dumps({"inputs": [GOOD], member.name: bad})), text=member.text)
    for number, name in enumerate(NAMES):
        yield f"an input's name {number}: {str(name)[:20]}", Case(post(changed(name=name)), text="name")
        asked = {"inputs": [GOOD], "outputs": [{"name": name}]}
        yield f"an output's name {number}: {str(name)[:20]}", Case(post(dumps(asked)), text="name")
    for member_name in ("name", "shape", "datatype"):
        yield f"an input without {member_name}", Case(post(without(member_name)), text=member_name)
    for bad in NO_OBJECTS:
        yield f"an input's parameters: {bad}", Case(post(changed(parameters=bad)), text="parameters")
    for name, bads in OUTPUT_PARAMETERS.items():
        for bad in bads:
            asked = {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {name: bad}}]}
            yield f"an output's {name}: {bad!r}", Case(post(dumps(asked)), text=name)
    for name, bads in PARAMETERS.items():
        for bad in bads:
            yield f"parameter {name!r}: {bad!r}", Case(post(dumps({"inputs": [GOOD], "parameters": {name: bad}})), text=name)


TEXTS: Mapping[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "null": b"null",
    "a number": b"1",
    "a string": b'"inputs"',
    "a list": b"[" + WHOLE + b"]",
    "two documents": WHOLE + WHOLE,
    "a rest": WHOLE + b"x",
    "a comment": b"/* */" + WHOLE,
    "a BOM": b"\xef\xbb\xbf" + WHOLE,
    "UTF-16": WHOLE.decode().encode("utf-16"),
    "a NUL before": b"\0" + WHOLE,
    "a NUL behind": WHOLE + b"\0",
    "single quotes": WHOLE.replace(b'"', b"'"),
    "no quotes": WHOLE.replace(b'"', b""),
    "a trailing comma": WHOLE[:-1] + b",}",
    "no colon": WHOLE.replace(b":", b" ", 1),
    "bad UTF-8": b'{"id":"\xff\xfe","inputs":[]}',
    "an overlong UTF-8": b'{"id":"\xc0\xaf","inputs":[]}',
    "a surrogate in UTF-8": b'{"id":"\xed\xa0\x80","inputs":[]}',
    "half a surrogate pair": rb'{"id":"\ud800","inputs":[]}',
    "a control character in a string": b'{"id":"\x01","inputs":[]}',
    "a bad escape": rb'{"id":"\x41","inputs":[]}',
    "half an escape": rb'{"id":"\u12","inputs":[]}',
    "infinity in small letters": WHOLE.replace(b"1.0", b"infinity", 1),
    "nan in small letters": WHOLE.replace(b"1.0", b"nan", 1),
    "True": WHOLE.replace(b"1.0", b"True", 1),
    "01": WHOLE.replace(b"1.0", b"01", 1),
    "+1": WHOLE.replace(b"1.0", b"+1", 1),
    "1.": WHOLE.replace(b"1.0", b"1.", 1),
    ".5": WHOLE.replace(b"1.0", b".5", 1),
    "0x1": WHOLE.replace(b"1.0", b"0x1", 1),
    "10^400": WHOLE.replace(b"1.0", b"1" + b"0" * 400, 1),
    "1e": WHOLE.replace(b"1.0", b"1e", 1),
    "a hundred thousand brackets": b"[" * 100_000,
    "a hundred thousand objects": b'{"a":' * 100_000,
    "noise": bytes(range(256)) * 8,
    "protobuf": b"\x0a\x01m\x2a\x03\x0a\x01x",
}
CUTS = range(1, len(WHOLE), 11)


def texts() -> Cases:
    """What is no JSON, or not the right one."""
    for name, text in TEXTS.items():
        yield f"body: {name}", Case(post(text))
    for cut in CUTS:
        yield f"body: the first {cut} bytes", Case(post(WHOLE[:cut]), text="JSON")


@dataclass(frozen=True, slots=True)
class Table:
    """All of them by name; two of one name are a mistake in the tables."""

    cases: dict[str, Case] = field(default_factory=dict)

    def add(self, cases: Cases) -> None:
        for name, case in cases:
            assert name not in self.cases, name
            self.cases[name] = case


def all_documents() -> dict[str, Case]:
    """Every case of this module."""
    table = Table()
    for cases in (shapes(), datatypes(), values(), data(), head_lengths(), members(), texts()):
        table.add(cases)
    return table.cases
