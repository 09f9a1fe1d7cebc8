"""The sending thread: batches, bounds, losses, files."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.errors import ConfigError
from server.messages import BatchFacts
from server.tracing import sender as module
from server.tracing.sender import AT_ONCE, SpanSender, otlp_export
from server.tracing.settings import Rule, Traced
from server.tracing.tracer import Trace


def trace(number: int = 0, file: Path | None = None, frequency: int = 0) -> Trace:
    traced = Traced(f"{number + 1:032x}", "", Rule(True, 1, -1, file, frequency))
    batch = BatchFacts(4, 2, "full", "fp32", "lane", cut=10.25, started=10.375, finished=10.5)
    return Trace(traced, "m", "1", "r", "", 1, 10.0, 10.125, 0.0625, 1.0, 0.25, batch)


def test_what_waits_is_sent_together_and_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def export(traces: Sequence[Trace]) -> bool:
        sent.append(len(traces))
        return True

    sender = SpanSender(export)
    for number in range(2 * AT_ONCE):
        sender.put(trace(number))
    sender.close()
    assert (sum(sent), sender.dropped) == (2 * AT_ONCE, 0)
    assert max(sent) <= AT_ONCE
    assert len(sent) <= 4


def test_a_collector_that_hangs_costs_traces_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 10)
    goes_on, arrived = threading.Event(), threading.Event()

    def export(traces: Sequence[Trace]) -> bool:
        arrived.set()
        return goes_on.wait(20)

    monkeypatch.setattr(module, "LINGER", 0.0)
    sender = SpanSender(export)
    sender.put(trace())
    assert arrived.wait(20)
    for number in range(100):
        sender.put(trace(number))
    assert sender.dropped == 90
    goes_on.set()
    sender.close()
    assert sender.dropped == 90


def test_what_the_collector_refuses_is_counted() -> None:
    sender = SpanSender(lambda traces: False)
    sender.put(trace())
    sender.put(trace())
    sender.close()
    assert sender.dropped == 2


def test_files_hold_a_line_for_each_trace(tmp_path: Path) -> None:
    sender = SpanSender(None)
    for number in range(5):
        sender.put(trace(number, tmp_path / "all.jsonl"))
        sender.put(trace(number, tmp_path / "some", frequency=2))
    sender.put(trace(0, tmp_path / "no folder" / "x"))
    sender.close()
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [int(line["trace_id"], 16) for line in lines] == [1, 2, 3, 4, 5]
    first = lines[0]
    assert {name: [at - first["begin_ns"] for at in ends] for name, ends in first["phases"].items()} == {
        "decode": [0, 62_500_000],
        "queue": [125_000_000, 250_000_000],
        "gather": [250_000_000, 375_000_000],
        "compute": [375_000_000, 500_000_000],
        "scatter": [500_000_000, 750_000_000],
        "encode": [750_000_000, 1_000_000_000],
    }
    assert (first["model"], first["batch_rows"], first["close_reason"], "tenant" in first) == ("m", 4, "full", False)
    assert {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("some.*")} == {"some.0": 2, "some.1": 2, "some.2": 1}
    assert (tmp_path / "all.jsonl").stat().st_mode & 0o777 == 0o600
    assert sender.dropped == 1


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    sender = SpanSender(None)
    sender.put(trace(0, tmp_path / "link"))
    sender.close()
    assert not (tmp_path / "elsewhere").exists()
    assert sender.dropped == 1


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name=name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(
        ConfigError, match=r"tracing.endpoint needs opentelemetry \(opentelemetry.sdk.trace isn't installed\).*tidegate\[trace\]"
    ):
        otlp_export("http://127.0.0.1:4318", "tidegate")
