"""Batches as the exposition tells them."""

from __future__ import annotations

import numpy as np
import tritonclient.http as client

from examples.metrics import Batches, parse_batches, read_batches
from examples.questions import Asker
from server.app import App

TEXT = """
# TYPE tidegate_batch_rows histogram
tidegate_batch_rows_bucket{model="m",version="1",le="1.0"} 2
tidegate_batch_rows_bucket{model="m",version="1",le="4.0"} 5
tidegate_batch_rows_bucket{model="m",version="1",le="+Inf"} 6
tidegate_batch_rows_sum{model="m",version="1"} 30
tidegate_batch_rows_count{model="m",version="1"} 6
tidegate_batch_rows_bucket{model="m",version="2",le="1.0"} 1
tidegate_batch_rows_bucket{model="m",version="2",le="4.0"} 1
tidegate_batch_rows_bucket{model="m",version="2",le="+Inf"} 1
tidegate_batch_rows_sum{model="m",version="2"} 1
tidegate_batch_rows_count{model="m",version="2"} 1
# TYPE tidegate_batches_total counter
tidegate_batches_total{model="m",version="1",reason="idle"} 4
tidegate_batches_total{model="m",version="1",reason="full"} 2
tidegate_batches_total{model="m",version="2",reason="idle"} 1
"""


def test_versions_are_summed_and_buckets_are_not_cumulative() -> None:
    found = parse_batches(TEXT)["m"]
    assert found == Batches({1.0: 3, 4.0: 3, float("inf"): 1}, {"idle": 5, "full": 2}, 31)
    assert found.runs == 7


def test_the_difference_of_two_readings() -> None:
    later = Batches({1.0: 5, 4.0: 3}, {"idle": 6, "full": 2, "deadline": 1}, 40)
    assert later.since(Batches({1.0: 3}, {"idle": 5, "full": 2}, 31)) == Batches({1.0: 2, 4.0: 3}, {"idle": 1, "full": 0, "deadline": 1}, 9)


def test_a_servers_own(right: App) -> None:
    before = read_batches(right.addresses.metrics).get("digits", Batches())
    with client.InferenceServerClient(right.addresses.http) as triton:
        Asker(triton).ask("digits", {"image": np.zeros((3, 1, 8, 8), np.float32)}, "logits")
    added = read_batches(right.addresses.metrics)["digits"].since(before)
    assert (added.runs, added.rows, sum(added.sizes.values())) == (1, 3, 1)
