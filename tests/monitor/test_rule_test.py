"""`tidegate monitor test`: rule tests that pass, that fail, and that can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.rule_test import run_tests
from server.errors import ConfigError

RULES = "pack: false\nmetrics:\n  - {name: queue_rows, threshold: 100, window: 15s, for: 30s, tags: {team: a}}\n"
TESTS = """\
rules: rules.yaml
tests:
  - name: a queue that grows
    interval: 15s
    series:
      - series: 'tidegate_queue_rows{model="bert"}'
        values: "0x4 150x10 0x4"
    alerts:
      - {at: 75s, alert: QueueRows, firing: []}
      - at: 2m
        alert: QueueRows
        firing: [{model: bert, severity: warning, team: a}]
        summary: "model bert queue_rows over 15s is 150, above 100"
      - {at: 4m, alert: QueueRows, firing: []}
"""


def written(folder: Path, tests: str) -> Path:
    (folder / "rules.yaml").write_text(RULES)
    (folder / "tests.yaml").write_text(tests)
    return folder / "tests.yaml"


def test_one_that_passes(tmp_path: Path) -> None:
    (result,) = run_tests(written(tmp_path, TESTS))
    assert (result.name, result.failures) == ("a queue that grows", ())


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("at: 2m", "at: 45s", "at 45s: QueueRows: expected {model=bert, severity=warning, team=a} firing, got none"),
        (
            "model: bert",
            "model: other",
            "expected {model=other, severity=warning, team=a} firing, got {model=bert, severity=warning, team=a}",
        ),
        ("at: 75s", "at: 2m", "at 2m: QueueRows: expected none firing, got {model=bert, severity=warning, team=a}"),
        ("is 150", "is 151", "expected the summary"),
    ],
)
def test_one_that_fails_says_what_fired_instead(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    (result,) = run_tests(written(tmp_path, TESTS.replace(right, wrong, 1)))
    assert len(result.failures) == 1
    assert message in result.failures[0]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("0x4 150x10", "0y4", "tests.yaml:6: tests.0.series.0: expected a value such as 5"),
        ("tidegate_queue_rows{", "{", "tests.yaml:6: tests.0.series.0: expected a metric's name"),
        ("firing: []", "firin: []", "unknown key 'firin'; did you mean 'firing'?"),
        ("rules: rules.yaml", "rules: none.yaml", "none.yaml: can't be read"),
    ],
)
def test_one_that_cannot_be_read(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_tests(written(tmp_path, TESTS.replace(right, wrong, 1)))
    assert message in str(caught.value)
