"""Generated pages are as the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from monitor.metrics.named import NAMED, RUNBOOKS
from monitor.rules.entries import camel
from tests.monitor.files import EXAMPLE, rules
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


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_metric_has_a_runbook(tmp_path: Path, name: str) -> None:
    threshold = {"seconds": "200ms", "bytes": "1GiB", "ratio": "50%"}.get(NAMED[name].unit, "5")
    for found in rules(tmp_path, f"metrics:\n  - {{name: {name}, threshold: {threshold}, absent: 5m, alert: MyOwn}}\n").rules:
        headings = re.findall(r"^## (.*)$", (DOCS.parent / found.runbook).read_text(), re.MULTILINE)
        assert headings == ["Meaning", "Impact", "Diagnosis", "Mitigation"]


def test_every_runbook_is_some_alerts() -> None:
    pages = {f"{RUNBOOKS.get(name, camel(name))}" for name in NAMED} | {"BudgetBurn", "MetricAbsent", "Watchdog"}
    assert {path.stem for path in (DOCS / "runbooks").glob("*.md")} == pages


def test_the_pages_examples_can_be_used(tmp_path: Path) -> None:
    """All the YAML of the page but the rule test's, as one file."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "monitor.md").read_text(), re.DOTALL)
    *settings, _ = blocks[1:]
    found = rules(tmp_path, "".join(settings))
    assert {"InferenceLatency", "QueueRows", "HttpRequestsTotal", "FastBudgetBurn"} <= {rule.alert for rule in found.rules}
    assert set(found.settings.notifiers) == {"pager", "hook", "am", "screen"}
