"""Generated pages are as the code says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.monitor.files import EXAMPLE
from tests.monitor.pages import DOCS, PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_is_as_generated(path: Path) -> None:
    assert path.read_text() == PAGES[path](), "run `python -m tests.monitor.pages`"


def test_the_schema_takes_the_example_and_refuses_a_wrong_name() -> None:
    schema = json.loads((DOCS / "schemas" / "monitor.json").read_text())
    jsonschema.validate(yaml.safe_load(EXAMPLE), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(EXAMPLE.replace("inference_latency", "inference_latancy")), schema)


def test_the_page_shows_the_example_to_the_letter() -> None:
    assert f"```yaml\n{EXAMPLE}```" in (DOCS / "monitor.md").read_text()
