"""Figures of hand-made runs, limits, comparisons, and the page."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.report.compare import Change, compare
from loadtests.report.document import GROWTH, LEAST, Report, bucket_end, bucket_of, read_report, report_of
from loadtests.report.page import page
from loadtests.samples import Outcome, RunFacts, Samples, figures, quantile
from loadtests.scenario import Scenario
from server.errors import ConfigError

SECONDS, WARMUP = 20, 2


def samples(scale: float = 1.0, failing: float = 0.0, seed: int = 1, rate: int = 200) -> Samples:
    """A run of log-normal latencies around 10 ms, `failing` of which have no answer."""
    random = np.random.default_rng(seed)
    count = rate * (SECONDS + WARMUP)
    due = np.sort(random.uniform(0, SECONDS + WARMUP, count))
    latency = random.lognormal(np.log(0.01 * scale), 0.4, count)
    outcome = np.where(random.random(count) < failing, Outcome.FAILED, Outcome.ANSWERED).astype(np.int8)
    kind = (random.random(count) < 0.25).astype(np.int16)
    runs = [RunFacts(4, 0.001, 0.002), RunFacts(8, 0.003, 0.004)]
    rows = np.ones(count, np.int32)
    return Samples(("a", "b"), WARMUP, WARMUP + SECONDS, due, due + 1e-4, due + latency, outcome, kind, rows, runs, {"500: <b>": 3})


def report(slo: dict[str, object] | None = None, **changes: float) -> Report:
    scenario = Scenario.model_validate({"name": "<net>", "mix": [{"model": "a"}, {"model": "b"}], "slo": slo or {}})
    return report_of(scenario, samples(**changes), "http://127.0.0.1:1", "now", "0")  # type: ignore[arg-type]


def test_latency_counts_from_when_a_request_was_due() -> None:
    due = np.asarray([0.0, 1.0, 2.0, 3.0])
    found = figures(
        Samples(
            ("m",), 1.0, 4.0, due, due + np.asarray([0, 0.5, 0, 0]), due + np.asarray([9, 0.7, 0.1, 0.2]),
            np.asarray([0, 0, 1, 0], np.int8), np.zeros(4, np.int16), np.full(4, 2, np.int32),
        ),
        within=0.5,
    )  # fmt: skip
    assert [found.requests, found.answered, found.rows] == [3, 2 / 3, 4 / 3]  # the first was due before it was measured
    assert [found.quantiles["p50"], found.most] == pytest.approx([0.2, 0.7])
    assert (found.refused, found.failed, found.good) == (1 / 3, 0.0, 1 / 3)
    assert found.lag == pytest.approx(0.5)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_quantile_is_the_least_value_that_enough_do_not_pass(values: list[float], q: float) -> None:
    ordered = np.sort(values)
    found = quantile(ordered, q)
    assert np.mean(ordered <= found) >= q
    assert not np.mean(ordered < found) >= q + 1 / len(values)


@given(st.floats(LEAST * 1.001, 1000))
def test_a_bucket_holds_its_latencies(latency: float) -> None:
    number = bucket_of(np.asarray([latency]))
    end = float(bucket_end(number)[0])
    assert end / GROWTH * (1 - 1e-9) <= latency <= end * (1 + 1e-9)


def test_limits_are_held_to_what_was_found() -> None:
    found = report({"p50": "20ms", "p99": "1ms", "within": "1s", "goodput": "95%", "errors": "1%", "rate": "1000/s"}, failing=0.1)
    assert {limit.name: limit.met for limit in found.slo} == {"p50": True, "p99": False, "errors": False, "goodput": False, "rate": False}


def test_a_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    written = report()
    (tmp_path / "r.json").write_text(written.model_dump_json())
    assert read_report(tmp_path / "r.json") == written
    assert sum(sum(block.buckets.values()) for block in written.blocks) == sum(block.answered for block in written.blocks)
    (tmp_path / "bad.json").write_text('{"schema_version": 1}')
    with pytest.raises(ConfigError, match=r"bad\.json: not a report"):
        read_report(tmp_path / "bad.json")


def changes(before: Report, after: Report) -> dict[str, Change]:
    return {row.name: row.change for row in compare(before, after)}


def test_the_same_server_twice_is_hardly_ever_called_worse() -> None:
    found = [changes(report(seed=100 + 2 * pair), report(seed=101 + 2 * pair)) for pair in range(12)]
    assert sum(Change.WORSE in each.values() for each in found) <= 1


def test_what_got_slower_fails_more_or_answers_less_is_said() -> None:
    slower = changes(report(), report(scale=1.2))
    assert {slower[name] for name in ("p50", "p90", "p99")} == {Change.WORSE}
    assert changes(report(scale=1.2), report())["p50"] is Change.BETTER
    assert changes(report(), report(failing=0.1))["failed"] is Change.WORSE
    assert changes(report(), report(rate=150))["answers a second"] is Change.WORSE


def test_a_short_run_cannot_be_compared() -> None:
    short = report().model_copy(update={"blocks": report().blocks[:3]})
    with pytest.raises(ConfigError, match="can't be compared"):
        compare(report(), short)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_figures_and_plots_and_runs_nothing() -> None:
    found = page(report({"p99": "1ms"}))
    shown = Page()
    shown.feed(found)
    assert found.count("<svg") == 4
    assert "script" not in shown.tags
    assert "<net>" in shown.text
    assert "500: <b>" in shown.text  # what a server said is text, whatever it holds
    assert "missed" in shown.text
    assert "src=" not in found


def test_a_run_without_an_answer_has_a_page_too() -> None:
    found = report(failing=1.0)
    assert found.whole.p50 is None
    assert page(found).count("<svg") == 2
    assert not math.isnan(found.whole.failed)
