"""Rules files for tests: YAML text in, what it amounts to out."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.rules.build import read_rules
from monitor.rules.model import Rule, Ruleset
from server.errors import ConfigError

EXAMPLE = """\
metrics:
  - name: inference_latency
    threshold: 200ms
    alert_level: WARNING
  - name: gpu_utilization
    threshold: 90%
    alert_level: CRITICAL
"""
"""The file of the issue and of docs/monitor.md, to the letter."""

ALONE = "pack: false\nwatchdog: false\n"
"""Before a file whose own rules alone are looked at."""


def rules(folder: Path, text: str) -> Ruleset:
    """What `text` amounts to, as the file rules.yaml in `folder`."""
    path = folder / "rules.yaml"
    path.write_text(text)
    return read_rules(path)


def rule(folder: Path, text: str) -> Rule:
    """The only rule of `text`, without the pack."""
    (only,) = rules(folder, ALONE + text).rules
    return only


def wrong(folder: Path, text: str) -> list[str]:
    """What is wrong with `text`: a message each, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        rules(folder, text)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]
