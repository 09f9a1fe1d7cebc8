"""How large the batches were: the difference of two readings of the server's /metrics."""

from __future__ import annotations

import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families


@dataclass(slots=True)
class Batches:
    """Of one model: runs by the upper bound of their rows, runs by why they were cut, and rows in all."""

    sizes: dict[float, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    @property
    def runs(self) -> int:
        return sum(self.reasons.values())

    def since(self, before: Batches) -> Batches:
        """What was added after `before`."""
        sizes = {bound: count - before.sizes.get(bound, 0) for bound, count in self.sizes.items()}
        reasons = {reason: count - before.reasons.get(reason, 0) for reason, count in self.reasons.items()}
        return Batches(sizes, reasons, self.rows - before.rows)


def read_batches(address: str) -> dict[str, Batches]:
    """Every model's batches so far, from the metrics port at `address` (host:port). Raises OSError."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return parse_batches(answer.read().decode())


def parse_batches(text: str) -> dict[str, Batches]:
    """The same from the text of an exposition. Prometheus' buckets are cumulative; `sizes` are not."""
    models: dict[str, Batches] = defaultdict(Batches)
    cumulative: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            model, value = sample.labels.get("model", ""), int(sample.value)
            if sample.name == "tidegate_batch_rows_bucket":
                cumulative[model][float(sample.labels["le"])] += value
            elif sample.name == "tidegate_batch_rows_sum":
                models[model].rows += value
            elif sample.name == "tidegate_batches_total":
                reasons = models[model].reasons
                reasons[sample.labels["reason"]] = reasons.get(sample.labels["reason"], 0) + value
    for model, bounds in cumulative.items():
        below = 0
        for bound in sorted(bounds):
            models[model].sizes[bound] = bounds[bound] - below
            below = bounds[bound]
    return dict(models)
