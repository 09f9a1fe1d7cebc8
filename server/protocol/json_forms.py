"""Requests that are all JSON, as clients send them again and again: the same text around other values.

What surrounds the values of a request with one input is kept with what it means, so that only the values are parsed. That is exact: a
document stays one, of the same structure, when the text of one of its values is replaced by that of another value, and each text is
parsed as a value of its own. A leading `"id"` is cut out first, since clients that number their requests would never hit.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import JSONDecoder
from typing import NamedTuple

import orjson

from server.errors import InvalidRequest
from server.messages import InferRequest, Layout, RequestedOutput, Scalar
from server.protocol.head import LEADING_ID, Body, Head, Input, Layouts, parse_head
from server.protocol.json_codec import decode, from_json, request_of
from server.protocol.reply import Reply
from server.tensors import DType

MAX_FORMS = 256
MAX_TEXT = 1024  # bytes before the values, and after them
MAX_BODY = 1 << 16  # bytes of a request from which a form is learned

_DATA = b'"data":'
_scan = JSONDecoder().raw_decode


class _Form(NamedTuple):
    """What the text around an input's values means, and the part of it that comes after them."""

    after: bytes
    name: str
    kind: DType
    shape: tuple[int, ...]
    elements: int
    layout: Layout
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Scalar]
    reply: Reply


class JsonDecoder:
    """Decodes bodies, and keeps the forms of those that came twice: at most MAX_FORMS, forgotten all at once when full. Requests with
    equal inputs share one Layout."""

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._forms: dict[bytes, _Form] = {}
        self._seen: set[bytes] = set()

    def decode(self, body: Body, model: str, version: str) -> tuple[InferRequest, Reply]:
        """Decode a body. Raises InvalidRequest or Unsupported."""
        if type(body) is not bytes or len(body) > MAX_BODY:
            return decode(body, model, version, self._layouts)
        start, request_id = 0, None
        if body.startswith(b'{"id":') and (found := LEADING_ID.match(body)) is not None:
            start, request_id = found.end(), found[1].decode()
        values = body.find(_DATA, start, start + MAX_TEXT) + len(_DATA)
        before = body[start:values]
        form = self._forms.get(before)
        if form is None or not body.endswith(form[0]):
            return self._decode_new(body, model, version, before, values)
        after, name, kind, shape, elements, layout, outputs, parameters, reply = form
        try:
            data = orjson.loads(body[values : len(body) - len(after)])
        except orjson.JSONDecodeError:  # perhaps NaN
            return decode(body, model, version, self._layouts)
        if request_id is not None:
            reply = Reply(request_id, reply[1], reply[2])
        inputs = {name: from_json(name, kind, shape, elements, data)}
        return InferRequest(model, inputs, layout, version, reply[0], outputs, parameters), reply

    def _decode_new(self, body: bytes, model: str, version: str, before: bytes, values: int) -> tuple[InferRequest, Reply]:
        head = parse_head(body)
        request = request_of(head, model, version, self._layouts)
        if len(head.inputs) == 1 and head.shared is None and before.endswith(_DATA):
            self._learn(before, body[values:], head, request.layout)
        return request, head.reply

    def _learn(self, before: bytes, rest: bytes, head: Head, layout: Layout) -> None:
        """Keep the form of a request at its second coming; `rest` begins with the values."""
        if before not in self._seen:
            if len(self._seen) >= MAX_FORMS:
                self._seen.clear()
            self._seen.add(before)
        elif (after := _after(before, rest, head.inputs[0])) is not None:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            name, kind, shape, elements, _, _ = head.inputs[0]
            self._forms[before] = _Form(after, name, kind, shape, elements, layout, head.outputs, head.parameters, head.reply)


def _after(before: bytes, rest: bytes, item: Input) -> bytes | None:
    """What follows the values that `rest` begins with, None where what surrounds them is no form: with another text in their place it must
    be the same request but for `item`'s data."""
    if not rest.isascii() or item.size is not None:
        return None
    text = rest.decode()
    try:
        _, end = _scan(text, len(text) - len(text.lstrip()))
    except (ValueError, RecursionError):
        return None
    after = rest[end:]
    whole = before if before.startswith(b"{") else b'{"id":"' + before
    try:
        probe = parse_head(whole + b"[[]]" + after).inputs
    except InvalidRequest:
        return None
    return after if len(after) <= MAX_TEXT and len(probe) == 1 and probe[0].data == [[]] != item.data else None
