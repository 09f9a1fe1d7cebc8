"""One model: where its time goes, how its batches are cut, what is turned away."""

from __future__ import annotations

from monitor.render.grafana.panels import (
    MODEL,
    VERSION,
    Board,
    Kind,
    Limits,
    Panel,
    mean,
    newest,
    quantiles,
    rate,
    worse_above,
)
from server.metrics import catalogue as c

_LATENCY = (
    Panel(
        "Latency",
        "From a request's last byte to its answer, of successful requests: half, nine of ten, and all but one in a hundred are faster.",
        quantiles(c.REQUEST_DURATION.name, "model", MODEL),
        "s",
    ),
    Panel(
        "Latency, every request",
        "How many requests took how long. Two bands are two kinds of requests, or two precisions or versions.",
        [(f"sum by (le) (increase({c.REQUEST_DURATION.name}_bucket{{{MODEL}}}[$__rate_interval]))", "{{le}}")],
        "s",
        Kind.HEATMAP,
    ),
    Panel(
        "Mean time by phase",
        "Where a request's time goes. queue: not enough lanes, or a batch is waited for; compute: the model itself; decode and encode: big "
        "or JSON bodies.",
        [mean(c.PHASE_DURATION.name, "phase", MODEL)],
        "s",
        Kind.STACK,
    ),
)

_TRAFFIC = (
    Panel(
        "Rows offered, run, and possible",
        "offered passes possible: the model is overloaded, and the difference to run is turned away.",
        [
            (rate(c.OFFERED_ROWS.name, "model", MODEL)[0], "{{model}} offered"),
            (rate(c.ROWS_TOTAL.name, "model", MODEL)[0], "{{model}} run"),
            (newest(c.CAPACITY_ROWS.name, "model", MODEL, "sum")[0], "{{model}} possible"),
        ],
        "rowsps",
    ),
    Panel(
        "Capacity used",
        "Offered over possible, of the fullest replica. Autoscaling aims at 70 %.",
        [newest(c.CAPACITY_UTILIZATION.name, "model, version", MODEL)],
        "percentunit",
        limits=worse_above(0.7, 1.0),
    ),
    Panel(
        "Requests by outcome",
        "What became of this model's requests, with the reason of those that failed.",
        [rate(c.REQUESTS.name, "outcome, reason", MODEL)],
        "reqps",
    ),
    Panel(
        "Refused for their deadline",
        "expired: past when it would have run; hopeless: couldn't be kept; given_up: others are answered in its place. Any of it: more "
        "capacity, or a longer deadline.",
        [rate(c.DROPPED.name, "reason", MODEL)],
        "reqps",
    ),
    Panel(
        "Rows waiting",
        "The queue. It should rise and fall within an objective's time.",
        [newest(c.QUEUE_ROWS.name, "model, version", VERSION, "sum")],
    ),
    Panel(
        "Bytes waiting",
        "Memory that the queue holds.",
        [newest(c.QUEUE_BYTES.name, "model, version", VERSION, "sum")],
        "bytes",
    ),
)

_BATCHING = (
    Panel(
        "Rows per batch",
        "How full batches are. Small ones under load: an objective too tight, or requests whose shapes differ.",
        quantiles(c.BATCH_ROWS.name, "model", MODEL),
    ),
    Panel(
        "Why batches are cut",
        "idle: nothing else to do; full: as many rows as there may be; deadline: an answer was due; shape: the next request doesn't fit.",
        [rate(c.BATCHES.name, "reason", MODEL)],
        "ops",
        Kind.STACK,
    ),
    Panel(
        "A run's time",
        "How long a run of the size that capacity is reckoned with takes, as the batcher has learned it. A step is another device, other "
        "neighbours, or a lower clock.",
        [newest(c.RUN_SECONDS.name, "model, version, precision", MODEL)],
        "s",
    ),
    Panel(
        "Padding",
        "Share of a batch's cells that is padding, of models that are padded. Much of it: length_buckets would help.",
        quantiles(c.PADDING_RATIO.name, "model", MODEL, (0.5, 0.9)),
        "percentunit",
        limits=worse_above(0.2, 0.4),
    ),
    Panel(
        "Length of batches",
        "Cells a row that padded batches were padded to.",
        quantiles(c.BATCH_LENGTH.name, "model", MODEL, (0.5, 0.99)),
    ),
)

_LANES = (
    Panel(
        "Lanes busy",
        "Share of the time in which each lane runs batches. All near 1: the device is full; one alone: lanes are uneven.",
        [rate(c.LANE_BUSY.name, "lane", MODEL)],
        "percentunit",
    ),
    Panel(
        "Lanes lost",
        "Lanes that died or hung in the last ten minutes and were opened again. Their batches were run elsewhere; the cause is in the log.",
        [(f"sum by (model, version, reason) (increase({c.LANE_RESTARTS.name}{{{MODEL}}}[10m]))", "{{model}} {{version}} {{reason}}")],
        limits=Limits(((1, "red"),)),
    ),
    Panel(
        "Ready",
        "Which versions serve. A gap is an unload, a reload, or a replica that is gone.",
        [newest(c.MODEL_READY.name, "model, version", VERSION, "min")],
        kind=Kind.STATES,
        limits=Limits(((1, "green"),), "red"),
    ),
)

_KEPT = (
    Panel(
        "Cache hits",
        "Share of the look-ups that the response cache answered, of models that have one. Low for long: it only costs memory.",
        [
            (
                f'sum by (model) (rate({c.CACHE_LOOKUPS.name}{{{VERSION}, result="hit"}}[$__rate_interval])) '
                f"/ sum by (model) (rate({c.CACHE_LOOKUPS.name}{{{VERSION}}}[$__rate_interval]))",
                "{{model}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Cache's memory",
        "Bytes that the response cache holds; cache.max_bytes bounds them.",
        [newest(c.CACHE_BYTES.name, "model, version", VERSION, "sum")],
        "bytes",
    ),
    Panel(
        "Sequences",
        "Sequences whose state is kept, of stateful models. At sequence.max_sequences new ones are turned away.",
        [newest(c.SEQUENCES.name, "model, version", VERSION, "sum")],
    ),
)

MODEL_BOARD = Board(
    "model",
    "tidegate: model",
    "One model: where its time goes, how its batches are cut, what is turned away.",
    ("instance", "model", "version", "precision"),
    (("Latency", _LATENCY), ("Traffic", _TRAFFIC), ("Batching", _BATCHING), ("Lanes", _LANES), ("Cache and sequences", _KEPT)),
)
