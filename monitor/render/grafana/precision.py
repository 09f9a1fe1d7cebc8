"""Precision and canary: which precision and which version answer, why, and whether they answer as well as the others."""

from __future__ import annotations

from monitor.render.grafana.panels import MODEL, NAME, VERSION, Board, Kind, Limits, Panel, newest, quantiles, rate, worse_above
from server.metrics import catalogue as c

_OF_LADDER = 'model=~"$model", precision=~"$precision", instance=~"$instance"'

_PRECISION = (
    Panel(
        "Precision that answers",
        "Which precision answers, over time. Each change has its reason in the events: load, the drift guard, or somebody's command.",
        [newest(c.ACTIVE_PRECISION.name, "model, precision", MODEL)],
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
    Panel(
        "Load on each precision",
        "What is asked for, or foreseen, over what each precision can serve in time. Above 0.85 the ladder steps down, below 0.7 back up.",
        [newest(c.LADDER_UTILIZATION.name, "model, precision", _OF_LADDER)],
        "percentunit",
        limits=worse_above(0.7, 0.85),
    ),
    Panel(
        "Steps of the ladder",
        "Changes of precision that the server made by itself, by the new one and why; failed: it couldn't be loaded.",
        [rate(c.LADDER_STEPS.name, "model, precision, reason", _OF_LADDER)],
    ),
)

_CANARY = (
    Panel(
        "Share of the canary",
        "Which share of the requests a canary gets. It rises step by step while the tests hold, and ends with the canary: by promotion, or "
        "by a roll-back, as the verdicts say.",
        [newest(c.CANARY_SHARE.name, "model", NAME)],
        "percentunit",
    ),
    Panel(
        "Step of the canary",
        "From 1; 0 where none goes on. For long at one step: the verdicts say what it waits for.",
        [newest(c.CANARY_STEP.name, "model", NAME)],
    ),
    Panel(
        "Verdicts",
        "What followed from looking at a canary, and why. few_samples and too_soon pass; sample_ratio means that the requests don't fall "
        "as they should; roll_back ends it.",
        [rate(c.CANARY_VERDICTS.name, "model, action, reason", NAME)],
        "ops",
        Kind.STACK,
    ),
    Panel(
        "Worse than the baseline by",
        "By how much the canary is worse in each guard (a share; seconds of latency), and between which bounds that lies at all times. "
        "Both bounds above 0: it is worse; both below the guard's margin: it is as good.",
        [
            (newest(c.GUARD_WORSE.name, "model, guard", NAME)[0], "{{model}} {{guard}}"),
            (newest(c.GUARD_LOW.name, "model, guard", NAME)[0], "{{model}} {{guard}} at least"),
            (newest(c.GUARD_HIGH.name, "model, guard", NAME)[0], "{{model}} {{guard}} at most"),
        ],
    ),
    Panel(
        "Evidence",
        "Requests a second that count for a canary or an A/B test, of each arm: those that chance gave to a version.",
        [rate(c.EXPERIMENT_REQUESTS.name, "model, arm, version", NAME)],
        "reqps",
    ),
    Panel(
        "Cut off",
        "1 while the state can't be reached: the baseline answers everything, and the canary goes on afterwards.",
        [newest(c.EXPERIMENT_CUT_OFF.name, "model", NAME)],
        kind=Kind.STATES,
        limits=Limits(((1, "red"),)),
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
