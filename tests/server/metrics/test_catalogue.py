import re
import subprocess
import sys

import pytest

from server import errors
from server.errors import TidegateError
from server.metrics.catalogue import BATCH_ROWS, CATALOGUE, OUTCOMES, PROCESS, REQUEST_DURATION, SUCCESS, USUAL_REASONS, Metric

OURS = [metric for metric in CATALOGUE.values() if metric not in PROCESS]


@pytest.mark.parametrize("metric", OURS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"tidegate_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels)
    assert not {"le", "quantile", "instance", "job"} & set(metric.labels)


@pytest.mark.parametrize("metric", OURS, ids=lambda metric: metric.name)
def test_buckets_rise(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted({*metric.buckets})


def test_buckets_hold_what_alerts_ask_for() -> None:
    assert 0.2 in REQUEST_DURATION.buckets
    assert {1.0, 64.0} <= {*BATCH_ROWS.buckets}


def test_every_error_has_an_outcome() -> None:
    def tree(kind: type[TidegateError]) -> set[str]:
        ours = (child for child in kind.__subclasses__() if child.__module__ == errors.__name__)  # the exporters have their own
        return {kind.reason}.union(*map(tree, ours))

    reasons = tree(errors.TidegateError)
    assert reasons == OUTCOMES.keys()
    assert {*USUAL_REASONS} <= reasons
    assert SUCCESS not in OUTCOMES.values()


def test_the_catalogue_needs_the_standard_library_only() -> None:
    others = ("prometheus_client", "numpy", "pydantic", "structlog")
    code = f"import sys, server.metrics.catalogue; print(sorted(sys.modules.keys() & {set(others)}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
