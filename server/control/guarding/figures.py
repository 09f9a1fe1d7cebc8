"""The guard's metrics, by version and variant. Read by the thread that scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic

from server.metrics import catalogue
from server.metrics.catalogue import Metric
from server.metrics.recorder import Recorder
from server.precision.guard.guard import Guard
from server.precision.guard.record import Blame, Cause, Record
from server.router.table import ServedVersion


def show(recorder: Recorder, served: ServedVersion, guard: Guard) -> None:
    """Have the metrics of a version's guard read. Again now and then: those of a precision end when it's unloaded."""
    version = {"model": served.model, "version": served.version}
    for metric, read in _of_version(guard):
        recorder.gauge(metric.name, version, read)
    for name, known in guard.inputs.items():
        labels = {**version, "input": name}
        recorder.gauge(catalogue.INPUT_SHIFT.name, labels, lambda known=known: known.shift)  # type: ignore[misc]
        recorder.gauge(catalogue.INPUT_STRANGE.name, labels, lambda known=known: known.strange)  # type: ignore[misc]
    for precision, record in guard.records.items():
        labels = {**version, "precision": precision}
        for metric, read in _of_variant(record):
            recorder.gauge(metric.name, labels, read)
        for blame in Blame:
            recorder.gauge(catalogue.NOT_FINITE.name, {**labels, "blame": blame}, partial(record.nonfinite.__getitem__, blame))
        for cause in Cause:
            recorder.gauge(catalogue.DRIFT_ALARMS.name, {**labels, "cause": cause}, partial(record.alarms.__getitem__, cause))


def _of_version(guard: Guard) -> Iterator[tuple[Metric, Callable[[], float]]]:
    yield catalogue.GUARD_SHARE, lambda: guard.pacer.share(monotonic())
    yield catalogue.GUARD_SECONDS, lambda: guard.pacer.seconds
    yield catalogue.GUARD_PAUSED, lambda: float(bool(guard.paused))


def _of_variant(record: Record) -> Iterator[tuple[Metric, Callable[[], float]]]:
    yield catalogue.DRIFT_STATISTIC, lambda: record.cusum.statistic
    yield catalogue.DRIFT_THRESHOLD, lambda: record.cusum.threshold
    yield catalogue.DRIFT_SAMPLES, lambda: float(record.rows)
    yield catalogue.DISAGREEMENT, lambda: record.cusum.differing / max(1, record.cusum.samples)
    yield catalogue.DISAGREEMENT_LOW, lambda: record.cusum.judge().low
    yield catalogue.DISAGREEMENT_HIGH, lambda: record.cusum.judge().high
    if record.admission is not None:
        test = record.admission
        yield catalogue.ADMISSION, lambda: test.statistic
