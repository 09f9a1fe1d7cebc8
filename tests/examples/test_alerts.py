"""`make demo-alerts` as its user runs it: the alert fires at the webhook and in Prometheus, ends in both, and the demo says so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_the_alert_fires_and_ends_in_both() -> None:
    shown = subprocess.run([sys.executable, "-m", "examples.alerts"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert re.search(r"InferenceLatency fires +│ [0-9.]+ s +│ [0-9.]+ s +│", shown.stdout)
    assert re.search(r"InferenceLatency is over +│ [0-9.]+ s +│ [0-9.]+ s +│", shown.stdout)
    assert re.search(r"firing: WARNING .*inference_latency p99 over 10s is .*, above 200ms", shown.stdout)
    assert "They agree" in shown.stdout
