"""What docs/ says of the load tests is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from loadtests.scenario import SHIPPED, read_scenario, scenario_schema
from tests.loadtests.pages import DOCS, pages
from tests.loadtests.test_report import report


@pytest.mark.parametrize(("path", "content"), pages().items(), ids=lambda value: value.name if isinstance(value, Path) else "")
def test_generated_files_are_up_to_date(path: Path, content: str) -> None:
    assert path.read_text(encoding="utf-8") == content, "run python -m tests.loadtests.pages"


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_scenarios_fit_the_schema_and_stand_on_the_page(file: Path) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text()), scenario_schema())
    assert f"`{file.stem}`" in (DOCS / "loadtests.md").read_text()


def test_a_report_fits_its_schema() -> None:
    schema = pages()[DOCS / "schemas/loadtest.json"]
    jsonschema.validate(yaml.safe_load(report().model_dump_json()), yaml.safe_load(schema))


def test_scenarios_on_the_page_can_be_read(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (DOCS / "loadtests.md").read_text(), re.DOTALL)
    assert shown
    for number, text in enumerate(shown):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        assert read_scenario(file).mix
