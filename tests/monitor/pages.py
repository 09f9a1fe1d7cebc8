"""What is generated from the monitor's code: `python -m tests.monitor.pages` writes it, a test compares it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from monitor.evaluator import diagram
from monitor.metrics.named import NAMED
from monitor.rules.build import rules_schema

DOCS = Path(__file__).resolve().parents[2] / "docs"


def schema() -> str:
    """docs/schemas/monitor.json."""
    return json.dumps(rules_schema(), indent=2, ensure_ascii=False) + "\n"


def named_table() -> str:
    """Every named metric."""
    rows = ((f"`{m.name}`", m.unit, m.comparison, _code(m.by), m.what, _code(m.families)) for m in NAMED.values())
    head = ("`name`", "Unit", "Alert if", "One alert per", "What it is", "Read from")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def section(page: str, name: str, content: str) -> str:
    """`page` with what stands between the marks of `name` replaced."""
    begin, end = f"<!-- {name}: written by python -m tests.monitor.pages -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(page), f"the page has no marks for {name!r}"
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", page)


def monitor_page() -> str:
    """docs/monitor.md with its tables."""
    text = (DOCS / "monitor.md").read_text()
    for name, content in (("named", named_table), ("states", lambda: f"```mermaid\n{diagram()}\n```")):
        text = section(text, name, content())
    return text


PAGES: Mapping[Path, Callable[[], str]] = {
    DOCS / "schemas" / "monitor.json": schema,
    DOCS / "monitor.md": monitor_page,
}
"""File → what it should hold."""


if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(text())
