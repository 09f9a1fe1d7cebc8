"""The INT8 graphs of one export: each scheme quantised and judged, and the least number of nodes that must stay FP32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporters.draft import Candidate, Draft
from exporters.formats import to_onnx
from exporters.optimize.fuse import DOMAIN
from exporters.parity import measure
from exporters.plan import ExportError
from exporters.precision import quantize, sensitivity
from exporters.precision.calibration import CalibrationSet
from exporters.precision.quantize import Scheme
from exporters.precision.ranges import Range, observe
from exporters.proof import choose_by
from exporters.rows.arrays import digest


class EightBits:
    """Works on one prepared graph, whose ranges are learned once and whose scales once a calibrator."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._prepared = draft.path("int8-prepared")
        quantize.prepare(draft.base.file, self._prepared)
        self._ranges: Mapping[str, Range] = observe(self._prepared, self._rows.batches, measure.threads())
        self._scales: dict[str | None, Any] = {None: None, "minmax": quantize.minmax(self._ranges)}
        self._schemes: dict[str, Scheme] = {}
        self._count = 0
        self.schemes = quantize.schemes(draft.plan.target, draft.base.graph.operators, draft.plan.level)

    def made(self, scheme: Scheme, kept: tuple[str, ...] = ()) -> Candidate:
        """The graph that a scheme makes, judged on the rows that choose: its failures say why it can't be used."""
        draft = self._draft
        draft.reporter.detail(f"{scheme.method}{f', {len(kept)} nodes in FP32' if kept else ''}")
        self._count += 1
        file = draft.path(f"int8-{self._count}")
        means = ("int8", scheme.method, kept, digest(self._rows.batches), *draft.tools)
        draft.finished.file(
            file, self._prepared, means, lambda: quantize.quantize(self._prepared, file, scheme, self._scales_of(scheme), kept)
        )
        # An LSTM's INT8 is an operator of onnxruntime's own, as is right for a scheme that is for its CPU kernels alone.
        graph = to_onnx.check(file, domains=(DOMAIN,) if scheme.calibrator is None else ())
        nodes = draft.base.nodes | {"quantized": graph.nodes}
        made = Candidate("int8", scheme.method, draft.base.level, file, graph, nodes, kept, calibrated=scheme.calibrator is not None)
        self._schemes[scheme.method] = scheme
        choose_by(draft, made)
        return made

    def sparing(self, nearest: Candidate) -> Candidate | None:
        """`nearest` made again with as few of its most sensitive nodes in FP32 as it takes to hold; None where half of them don't do."""
        scheme = self._schemes[nearest.method]
        ranked = sensitivity.weigh(self._prepared, self._ranges, quantize.quantized_operators(scheme))
        made: dict[int, Candidate] = {}

        def holds(count: int) -> bool:
            made[count] = self.made(scheme, tuple(weighed.name for weighed in ranked[:count]))
            return not made[count].failures

        count = sensitivity.fewest(len(ranked) // 2, holds) if len(ranked) > 1 else None
        return made[count] if count else None

    @property
    def _rows(self) -> CalibrationSet:
        if self._draft.calibration is None:
            raise ExportError("INT8 was asked for before there were calibration rows")
        return self._draft.calibration

    def _scales_of(self, scheme: Scheme) -> Any:
        """Learned when they're first needed: histograms take their time."""
        if scheme.calibrator not in self._scales and scheme.calibrator is not None:
            self._scales[scheme.calibrator] = quantize.histogram(self._prepared, scheme.calibrator, self._rows, scheme.operators)
        return self._scales[scheme.calibrator]
