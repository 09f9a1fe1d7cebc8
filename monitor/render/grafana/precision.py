"""Precision and canary: which precision and which version answer, why, and whether they answer as well as the others."""

from __future__ import annotations

from monitor.render.grafana.panels import MODEL, NAME, VERSION, Board, Kind, Limits, Panel, newest, quantiles, rate, worse_above
from server.metrics import catalogue as c

_PRECISION = (
    Panel(
        "Precision that answers",
        "Which precision answers, over time. Each change has its reason in the events: load, the drift guard, or somebody's command.",
        [newest("tidegate_active_precision", "model, precision", MODEL)],
        kind=Kind.STATES,
        limits=Limits(((1, "green"),), "transparent"),
    ),
    Panel(
        "Drift statistic",
        "The drift guard's statistic: how much speaks for the precision answering otherwise than FP32. At 13 it falls back by itself.",
        [newest("tidegate_drift_statistic", "model, precision", MODEL)],
        limits=worse_above(6.5, 13.0),
    ),
    Panel(
        "Rows by precision",
        "How much each precision does. INT8 under load and FP16 else is the ladder at work.",
        [rate(c.ROWS_TOTAL.name, "model, precision", MODEL)],
        "rowsps",
        Kind.STACK,
    ),
    Panel(
        "Latency by precision",
        "The 99th percentile of each precision: what a lower one gains.",
        quantiles(c.REQUEST_DURATION.name, "model, precision", MODEL, (0.99,)),
        "s",
    ),
    Panel(
        "Possible by precision",
        "Rows a second that the lanes can serve in each precision: what a step of the ladder is worth.",
        [newest(c.CAPACITY_ROWS.name, "model, precision", MODEL, "sum")],
        "rowsps",
    ),
)

_CANARY = (
    Panel(
        "Share of the canary",
        "Which share of the traffic a canary has. It rises step by step while the tests hold; a fall to 0 is a roll-back.",
        [newest("tidegate_canary_step", "model, version", VERSION)],
        "percentunit",
    ),
    Panel(
        "Requests by version",
        "What each version gets, against the share that it should.",
        [rate(c.REQUESTS.name, "model, version", f'{VERSION}, version!=""')],
        "reqps",
        Kind.STACK,
    ),
    Panel(
        "Failed by version",
        "Share of each version's requests that failed by our doing. The canary's guard compares these.",
        [
            (
                f'sum by (model, version) (rate({c.REQUESTS.name}{{{VERSION}, version!="", outcome="failed"}}[$__rate_interval])) '
                f'/ sum by (model, version) (rate({c.REQUESTS.name}{{{VERSION}, version!="", '
                'outcome=~"success|failed|rejected"}[$__rate_interval]))',
                "{{model}} {{version}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Latency by version",
        "The 99th percentile of each version.",
        quantiles(c.REQUEST_DURATION.name, "model, version", VERSION, (0.99,)),
        "s",
    ),
    Panel(
        "Ready by version",
        "Which versions serve: a canary needs both.",
        [newest(c.MODEL_READY.name, "model, version", NAME, "min")],
        kind=Kind.STATES,
        limits=Limits(((1, "green"),), "red"),
    ),
)

PRECISION = Board(
    "precision",
    "tidegate: precision and canary",
    "Which precision and which version answer, and whether they answer as well as the others.",
    ("instance", "model", "version", "precision"),
    (("Precision", _PRECISION), ("Canary", _CANARY)),
)
