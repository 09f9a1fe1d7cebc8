"""The dashboards: overview, model, precision and canary, GPU. What alerts is on each of them, with the thresholds of the rules file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monitor.render.grafana.builder import board_json
from monitor.render.grafana.gpu import GPUS
from monitor.render.grafana.model import MODEL_BOARD
from monitor.render.grafana.overview import OVERVIEW
from monitor.render.grafana.panels import Board
from monitor.render.grafana.precision import PRECISION
from monitor.render.grafana.watched import watched
from monitor.rules.model import Ruleset

BOARDS: Sequence[Board] = (OVERVIEW, MODEL_BOARD, PRECISION, GPUS)


def dashboards(ruleset: Ruleset) -> Mapping[str, str]:
    """File name → the dashboard as text."""
    return {f"{board.uid}.json": board_json(board, watched(ruleset, board.key)) for board in BOARDS}
