"""config.pbtxt as a message, and where in the file each of its fields stands, so that errors say file, line and column.

protobuf reads the file; it doesn't keep places, so the tokens are walked once more for them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format

from server.errors import ModelDefect
from server.protocol.proto.messages import POOL, Message, message_class
from server.validation import nearest

PBTXT_NAME = "config.pbtxt"
MAX_BYTES = 1 << 20
TritonConfig = message_class("inference.ModelConfig")

FieldPath: TypeAlias = tuple[str | int, ...]
"""Names of fields, each that holds a message followed by which of its kind it is: ("input", 0, "dims")."""
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[{}<>:])|\n|[^\n]""",
)
_UNKNOWN = re.compile(r'Message type "inference\.([\w.]+)" has no field named "(\w+)"')


def read_pbtxt(path: Path) -> tuple[Message, Mapping[FieldPath, str]]:
    """The file's message, and `line:column` by field. Raises ModelDefect with file, line and column."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelDefect(f"{path}: can't be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise ModelDefect(f"{path}: larger than {MAX_BYTES} bytes, which no configuration needs")
    try:
        text = raw.decode()
        return text_format.Parse(text, TritonConfig(), descriptor_pool=POOL), places(text)
    except UnicodeDecodeError as error:
        raise ModelDefect(f"{path}: not text: byte {error.start} isn't UTF-8") from error
    except text_format.ParseError as error:
        at = "".join(f":{number}" for number in (error.GetLine(), error.GetColumn()) if number is not None)
        raise ModelDefect(f"{path}{at}: {_said(str(error))}") from error
    except RecursionError as error:
        raise ModelDefect(f"{path}: nested too deeply") from error


def _said(text: str) -> str:
    """protobuf's words without the place, which is told before them; for an unknown field the nearest right one."""
    text = re.sub(r"^\d+:\d+ : ", "", text)
    if (unknown := _UNKNOWN.search(text)) is None:
        return text
    kind, name = unknown.groups()
    known = [field.name for field in message_class(f"inference.{kind}").DESCRIPTOR.fields]
    return f"unknown field {name!r} of {kind}{nearest(name, known)}"


def places(text: str) -> Mapping[FieldPath, str]:
    """`line:column` of each field of a text that protobuf could read."""
    found: dict[FieldPath, str] = {(): "1:1"}
    seen: Counter[FieldPath] = Counter()
    above: list[FieldPath] = [()]  # the messages that are open
    field: list[FieldPath] = [()]  # in each of them the field whose value comes
    for (token, place), (following, _) in itertools.pairwise([*_tokens(text), ("", "")]):
        if token in "{<":
            at = (*field[-1], seen[field[-1]])
            seen[field[-1]] += 1
            found.setdefault(at, place)
            above.append(at)
            field.append(at)
        elif token in "}>":
            above.pop()
            field.pop()
        elif token != ":" and following in (":", "{", "<"):
            field[-1] = (*above[-1], token)
            found.setdefault(field[-1], place)
    return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    line, start = 1, 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup in ("word", "mark"):
            yield match.group(), f"{line}:{match.start() - start + 1}"
        elif match.group() == "\n":
            line, start = line + 1, match.end()
