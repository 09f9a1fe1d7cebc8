"""Requests as each peer takes them, and its answers read back. Written for itself and not by the server's codecs, so that nobody is
checked by himself."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loadtests.peers.workloads import Arrays

Body = tuple[bytes, Mapping[str, str]]
"""A body and its headers."""

JSON = {"Content-Type": "application/json"}
RAW = {"Content-Type": "application/octet-stream"}
DATATYPES = {"float32": "FP32", "int64": "INT64"}
HEAD_LENGTH = "Inference-Header-Content-Length"


def _v2_json(arrays: Arrays) -> Body:
    inputs = [{**_described(name, array), "data": array.ravel()} for name, array in arrays.items()]
    return _dumps({"inputs": inputs}), JSON


def _v2_binary(arrays: Arrays) -> Body:
    inputs = [{**_described(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in arrays.items()]
    head = _dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return head + b"".join(array.tobytes() for array in arrays.values()), {**RAW, HEAD_LENGTH: str(len(head))}


def _json(arrays: Arrays) -> Body:
    return _dumps({"inputs": dict(arrays)}), JSON


def _raw(arrays: Arrays) -> Body:
    (array,) = arrays.values()
    return array.tobytes(), RAW


def _base64(arrays: Arrays) -> Body:
    return _dumps({"b64": base64.b64encode(_raw(arrays)[0]).decode()}), JSON


def _bento_json(arrays: Arrays) -> Body:
    return _dumps({"x": [dict(arrays)]}), JSON


def _bento_base64(arrays: Arrays) -> Body:
    return _dumps({"x": [base64.b64encode(_raw(arrays)[0]).decode()]}), JSON


FORMATS: Mapping[str, Callable[[Arrays], Body]] = {
    "v2-json": _v2_json,
    "v2-binary": _v2_binary,
    "json": _json,
    "raw": _raw,
    "b64": _base64,
    "bento-json": _bento_json,
    "bento-b64": _bento_base64,
}


def output(form: str, headers: Mapping[str, str], body: bytes) -> NDArray[np.float32]:
    """An answer's output, flat. `headers` in lower case. Raises ValueError for what is no answer of that form."""
    if form == "raw":
        return np.frombuffer(body, np.float32)
    if form.startswith("v2") and (length := headers.get(HEAD_LENGTH.lower())):
        return np.frombuffer(body[int(length) :], np.float32)
    document: Any = orjson.loads(body)
    try:
        values = document["outputs"][0]["data"] if form.startswith("v2") else document["output"] if isinstance(document, dict) else document
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not an answer of the form {form}: {body[:200]!r}") from error
    return np.asarray(values, np.float32).ravel()


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "shape": array.shape, "datatype": DATATYPES[str(array.dtype)]}


def _dumps(values: Any) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
