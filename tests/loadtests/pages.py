"""What is generated from the load tests' code: `python -m tests.loadtests.pages` writes it, a test compares it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from loadtests.report.document import report_schema
from loadtests.scenario import scenario_schema

DOCS = Path(__file__).resolve().parents[2] / "docs"

SCHEMAS: Mapping[str, Callable[[], Mapping[str, object]]] = {"scenario": scenario_schema, "loadtest": report_schema}


def pages() -> dict[Path, str]:
    """Each generated file and what it must hold."""
    return {DOCS / f"schemas/{name}.json": json.dumps(made(), indent=2, ensure_ascii=False) + "\n" for name, made in SCHEMAS.items()}


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
