"""What docs/ says about model.yaml, from the code. `python -m tests.server.repository.pages` writes it; test_pages says when that's due."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.repository.model_config import ModelConfig, model_schema

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "repository.md"
BEGIN, END = "<!-- model.yaml: written by python -m tests.server.repository.pages -->", "<!-- /model.yaml -->"


def model_table() -> str:
    """Every key with its default and what it is."""
    rows = [f"| `{key}` | {_default(field)} | {field.description} |" for key, field in _keys(ModelConfig, "")]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows])


def _keys(model: type[BaseModel], above: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{above}{name}.")
        elif inner := [part for part in typing.get_args(kind) if isinstance(part, type) and issubclass(part, BaseModel)]:
            named = "" if type(None) in typing.get_args(kind) else "NAME."
            if above:
                yield f"{above}{name}", field
            yield from _keys(inner[0], f"{above}{name}.{named}")
        else:
            yield f"{above}{name}", field


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, "", (), {}):
        return ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return "`auto`" if field.default == 0 and "auto" in (field.description or "") else f"`{field.default}`"


def _page() -> str:
    """docs/repository.md with the table between its marks replaced."""
    head, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin, "the page has no marks for model.yaml"
    assert end, "the page has no end mark for model.yaml"
    return f"{head}{BEGIN}\n{model_table()}\n{END}{tail}"


PAGES: Mapping[Path, Callable[[], str]] = {
    DOCS / "schemas" / "model.json": lambda: json.dumps(model_schema(), indent=2, ensure_ascii=False) + "\n",
    PAGE: _page,
}
"""File → what it should hold."""


if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(text())
