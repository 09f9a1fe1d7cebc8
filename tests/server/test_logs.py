import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from server.config import Log
from server.errors import (
    BackendFailure,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    TidegateError,
)
from server.logs import LINES_PER_SECOND, QUEUED_LINES, Journal
from server.messages import BatchFacts, InferRequest, InferResponse, Layout, Principal, TraceContext


class Lines:
    """A journal that writes into memory, and the lines it wrote."""

    def __init__(self, **settings: Any) -> None:
        self.stream = io.StringIO()
        self.journal = Journal(Log(**settings), self.stream)

    def text(self) -> str:
        self.journal.close()
        return self.stream.getvalue()

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def lines() -> Iterator[Callable[..., Lines]]:
    made: list[Lines] = []

    def make(**settings: Any) -> Lines:
        made.append(Lines(**settings))
        return made[-1]

    yield make
    for each in made:
        each.journal.close()


def request(**fields: Any) -> InferRequest:
    known = {"version": "", "id": "r-1", "rows": 2, "received": 100.0, "decode_seconds": 0.001, "queued": 100.001}
    return InferRequest("digits", {"x": np.zeros((2, 3))}, Layout(()), **{**known, **fields})


def answer(error: TidegateError | None = None) -> InferResponse:
    batch = BatchFacts(8, 4, "idle", "fp32", "digits/1/0", 100.011, 100.012, 100.032)
    return InferResponse("digits", "1", "r-1", error=error, batch=None if error else batch)


def test_lifecycle_lines_are_json(lines: Callable[..., Lines]) -> None:
    log = lines()
    log.journal.lifecycle("model_ready", model="digits", version="1", path=Path("models"))
    log.journal.lifecycle("model_unavailable", level="warning", model="m", reason="no file")
    first, second = log.read()
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert first.pop("timestamp").endswith("Z")
    assert first == {"level": "info", "event": "model_ready", "model": "digits", "version": "1", "path": "models"}
    assert (second["level"], second["reason"]) == ("warning", "no file")


def test_a_slow_request_tells_its_phases(lines: Callable[..., Lines]) -> None:
    log = lines(slow="30ms")
    trace = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    principal = Principal("ci", "token", frozenset())
    log.journal.finished(request(trace=trace, principal=principal, tenant="blue"), answer(), 0.036, 0.002)
    (line,) = log.read()
    line.pop("timestamp")
    assert line == {
        "level": "warning",
        "event": "request_slow",
        "id": "r-1",
        "traceparent": trace.traceparent,
        "model": "digits",
        "version": "1",
        "precision": "fp32",
        "rows": 2,
        "batch_rows": 8,
        "lane": "digits/1/0",
        "principal": "ci",
        "tenant": "blue",
        "outcome": "success",
        "total_ms": 36.0,
        "phases_ms": {"decode": 1.0, "queue": 10.0, "gather": 1.0, "compute": 20.0, "scatter": 2.0, "encode": 2.0},
    }
    assert sum(line["phases_ms"].values()) == line["total_ms"]


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (InvalidRequest("wrong shape"), "info"),
        (NotFound("no such model"), "info"),
        (Cancelled("gone"), "info"),
        (Overloaded("full", "queue.max_rows"), "warning"),
        (DeadlineExceeded("late"), "warning"),
        (BackendFailure("broke"), "error"),
        (TidegateError("what"), "error"),
    ],
)
def test_every_failed_request_is_told(lines: Callable[..., Lines], error: TidegateError, level: str) -> None:
    log = lines()
    log.journal.finished(request(), answer(error), 0.005, 0.001)
    (line,) = log.read()
    assert (line["event"], line["level"], line["outcome"]) == ("request_failed", level, "failed")
    assert (line["reason"], line["error"], line["id"]) == (error.reason, str(error), "r-1")
    assert line["phases_ms"] == {"decode": 1.0, "queue": 3.0, "encode": 1.0}


def test_a_request_that_never_reached_a_model_has_no_phases_it_did_not_reach(lines: Callable[..., Lines]) -> None:
    log = lines()
    log.journal.finished(request(queued=0.0, rows=0), answer(InvalidRequest("not JSON")), 0.002, 0.0)
    (line,) = log.read()
    assert line["phases_ms"].keys() == {"decode", "encode"}
    assert not line.keys() & {"rows", "precision", "traceparent", "principal"}


def test_good_requests_are_silent_unless_sampled(lines: Callable[..., Lines]) -> None:
    silent, chatty = lines(), lines(access_sample=1.0)
    for log in (silent, chatty):
        log.journal.finished(request(), answer(), 0.036, 0.002)
    assert silent.read() == []
    assert [line["event"] for line in chatty.read()] == ["access"]


def test_lines_below_the_level_are_not_written(lines: Callable[..., Lines]) -> None:
    log = lines(level="warning")
    log.journal.lifecycle("starting")
    log.journal.finished(request(), answer(InvalidRequest("x")), 0.001, 0.0)
    log.journal.finished(request(), answer(Overloaded("x", "y")), 0.001, 0.0)
    assert [line["reason"] for line in log.read()] == ["overloaded"]


def test_failures_beyond_the_limit_are_counted_by_reason(lines: Callable[..., Lines]) -> None:
    log = lines()
    for index in range(500):
        log.journal.finished(request(), answer(InvalidRequest("x") if index % 2 else NotFound("y")), 0.001, 0.0)
    written = log.read()
    told = [line for line in written if line["event"] == "request_failed"]
    held = [line for line in written if line["event"] == "request_failed_suppressed"]
    assert LINES_PER_SECOND <= len(told) <= 4 * LINES_PER_SECOND
    assert len(told) + sum(line["count"] for line in held) == 500
    assert {"invalid", "not_found"} == {reason for line in held for reason in line["reasons"]}


NASTY = 'a\x1b[31m\n{"event":"forged"}\r\x00\x9b \ud800 \U0001f600 \u2028' + "x" * 10_000


def test_what_clients_send_is_cut_and_escaped_in_json(lines: Callable[..., Lines]) -> None:
    log = lines(format="json")
    fields = {"id": NASTY, "trace": TraceContext(NASTY)}
    log.journal.finished(request(**fields), answer(InvalidRequest(NASTY)), 0.001, 0.0)
    text = log.text()
    assert text.count("\n") == 1
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in text[:-1])
    line = json.loads(text)
    assert (len(line["id"]), len(line["traceparent"]), len(line["error"])) == (256, 256, 2048)
    assert line["id"] == NASTY[:256]


def test_control_characters_that_json_allows_are_escaped_too(lines: Callable[..., Lines]) -> None:
    log = lines(format="json")
    log.journal.finished(request(id="\x9b31mred\x7f"), answer(InvalidRequest("é")), 0.001, 0.0)
    text = log.text()
    assert "\x9b" not in text
    assert json.loads(text)["id"] == "\x9b31mred\x7f"


def test_what_clients_send_is_escaped_on_a_terminal(lines: Callable[..., Lines]) -> None:
    log = lines(format="console")
    log.journal.finished(request(id=NASTY), answer(InvalidRequest(NASTY)), 0.001, 0.0)
    log.journal.lifecycle("model_ready", model="digits")
    first, second = log.text().removesuffix("\n").split("\n")
    assert "request_failed" in first
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in first)
    assert "model_ready" in second
    assert "model=digits" in second


def test_the_standard_librarys_records_go_the_same_way(lines: Callable[..., Lines]) -> None:
    level = logging.getLogger().level
    log = lines()
    logger = logging.getLogger("uvicorn.error")
    logger.warning("Invalid %s", "request")
    logger.debug("not this")
    misfit = {"name": "x", "levelname": "ERROR", "levelno": logging.ERROR, "msg": "wrong arguments %d", "args": ("x",)}
    logging.getLogger().handlers[-1].handle(logging.makeLogRecord(misfit))
    try:
        raise KeyError("why")
    except KeyError:
        logger.exception("it broke")
    warned, wrong, broke = log.read()
    assert (warned["event"], warned["level"], warned["logger"]) == ("Invalid request", "warning", "uvicorn.error")
    assert wrong["event"] == "wrong arguments %d"
    assert broke["exception"].endswith("KeyError: 'why'\n")
    assert logging.getLogger().level == level
    logger.warning("after close")
    assert "after close" not in log.stream.getvalue()


def test_a_reader_that_stops_reading_costs_lines_and_no_time() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb", buffering=0) as reader:
        journal = Journal(Log(), stream)
        slowest = 0.0
        for index in range(4 * QUEUED_LINES):
            begun = monotonic()
            journal.lifecycle("noise", index=index, text="x" * 100)
            slowest = max(slowest, monotonic() - begun)
        assert journal.dropped > 0
        assert slowest < 1.0
        dropped = journal.dropped
        text = b""
        while b'"log_lines_dropped"' not in text:
            text += reader.read(1 << 16)
        journal.close()
    events = [json.loads(line) for line in text.split(b"\n")[:-1]]
    assert events[-1]["count"] == dropped
    indexes = [event["index"] for event in events if event["event"] == "noise"]
    assert indexes == sorted(indexes)
    assert len(indexes) + dropped == 4 * QUEUED_LINES


def test_a_reader_that_is_gone_costs_lines_only() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        journal = Journal(Log(), stream)
        journal.lifecycle("into the void")
        journal.close()
        assert journal.dropped == 1


def test_a_process_ends_though_its_stderr_is_stuck() -> None:
    code = """
import sys
from server.config import Log
from server.logs import Journal
journal = Journal(Log(), sys.stderr)
for index in range(3000):
    journal.lifecycle("noise", text="x" * 200)
journal.close()
print("closed")
"""
    reading, writing = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, timeout=30, check=False)
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"closed\n")
