"""How `make conformance` judges what perf_analyzer printed; the runs themselves are behind the make target."""

from __future__ import annotations

import pytest

from tests.conformance.perf import PATIENCE, RUNS, Run, judged

LINES = [f"Concurrency: {number}, throughput: {number * 1000.5} infer/sec, latency 200 usec" for number in range(1, 9)]
WHOLE = "\n".join(["*** Measurement Settings ***", *LINES])


def test_a_whole_output_is_good() -> None:
    outcome = judged(WHOLE, 0, 1.0)
    assert outcome.fault == ""
    assert (outcome.rates[1], outcome.rates[8]) == (1000.5, 8004.0)


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        ("error: Unable to init infer data manager: Not Found\n", 99, "status 99: error: Unable to init infer data manager: Not Found"),
        ("", -11, "status -11: it printed nothing"),
        (WHOLE.replace("Concurrency: 5,", "Concurrency: ?,"), 0, "no throughput at concurrency 5"),
        (WHOLE.replace("8004.0 ", "0 "), 0, "no throughput at concurrency 8"),
        ("", 0, "no throughput at concurrency 1, 2, 3, 4, 5, 6, 7, 8"),
        (WHOLE, None, f"no end within {PATIENCE:g} s"),
    ],
)
def test_all_else_is_a_fault_and_says_which(output: str, status: int | None, said: str) -> None:
    assert judged(output, status, 1.0).fault == said


def test_the_runs_are_those_that_were_promised() -> None:
    ways = {(run.protocol, run.how) for run in RUNS}
    assert ways == {(protocol, how) for protocol in ("http", "grpc") for how in ("sync", "async", "shared memory")} | {
        ("grpc", "streaming")
    }
    assert {run.batch for run in RUNS} == {1, 4}
    command = Run("grpc", "streaming", ("--async", "--streaming"), 4).command("127.0.0.1:1")
    assert command[1:9] == ["-m", "identity", "-i", "grpc", "-u", "127.0.0.1:1", "-b", "4"]
    assert command[-2:] == ["--concurrency-range", "1:8"]
