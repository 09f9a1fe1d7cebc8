"""The overview: is anything wrong, and with which model. The first page that an on-call engineer opens."""

from __future__ import annotations

from monitor.render.grafana.panels import NAME, SERVER, Board, Kind, Limits, Panel, newest, quantiles, rate, worse_above, worse_below
from server.metrics import catalogue as c

_JUDGED = f'{NAME}, outcome=~"success|failed|rejected"'
_REQUESTS = c.REQUESTS.name

_NOW = (
    Panel(
        "Alerts firing",
        "How many alerts fire, the Watchdog left out. The row What alerts and the other dashboards show what they watch.",
        [('count(ALERTS{alertstate="firing", alertname!="Watchdog"}) or vector(0)', "alerts")],
        kind=Kind.STAT,
        limits=Limits(((1, "red"),)),
    ),
    Panel(
        "Models not ready",
        "Versions that a server has and that don't serve. Above 0, somebody is being answered 503.",
        [(f"count({c.MODEL_READY.name}{{{NAME}}} == 0) or vector(0)", "models")],
        kind=Kind.STAT,
        limits=Limits(((1, "red"),)),
    ),
    Panel(
        "Answered well",
        "Share of the requests that we answered, of those that weren't the client's own mistake. Below 99.9 % the error budget of a usual "
        "objective is being spent.",
        [
            (
                f'sum(rate({_REQUESTS}{{{NAME}, outcome="success"}}[$__rate_interval])) '
                f"/ sum(rate({_REQUESTS}{{{_JUDGED}}}[$__rate_interval]))",
                "success",
            )
        ],
        "percentunit",
        Kind.STAT,
        worse_below(0.99, 0.999),
    ),
    Panel(
        "Requests",
        "Requests a second of all models, refused and rejected ones too.",
        [(f"sum(rate({_REQUESTS}{{{NAME}}}[$__rate_interval]))", "requests")],
        "reqps",
        Kind.STAT,
    ),
    Panel(
        "Slowest 1 %",
        "The 99th percentile of the time from a request's last byte to its answer, over all models: a slow one is seen, not named.",
        [
            (
                f"histogram_quantile(0.99, sum by (le) (rate({c.REQUEST_DURATION.name}_bucket{{{NAME}}}[$__rate_interval])))",
                "p99",
            )
        ],
        "s",
        Kind.STAT,
    ),
    Panel(
        "Fullest model",
        "Rows offered over what can be served, of the model that is nearest to its limit. Autoscaling aims at 70 %; above 100 % work is "
        "turned away.",
        [(f"max({c.CAPACITY_UTILIZATION.name}{{{NAME}}})", "used")],
        "percentunit",
        Kind.STAT,
        worse_above(0.7, 1.0),
    ),
)

_REQUESTED = (
    Panel(
        "Latency, 99th percentile",
        "Which model is slow, and since when. A click leads to the model's own dashboard, which says in which phase the time goes.",
        quantiles(c.REQUEST_DURATION.name, "model", NAME, (0.99,)),
        "s",
        to="model",
    ),
    Panel(
        "Requests by outcome",
        "refused is the client's doing, rejected is ours for want of room or time, failed is a fault of ours. Only the last two spend the "
        "error budget.",
        [rate(_REQUESTS, "outcome, reason", NAME)],
        "reqps",
    ),
    Panel(
        "Rows a second",
        "The work itself: a request may bring many rows. Where this is flat while requests grow, the batches are full.",
        [rate(c.ROWS_TOTAL.name, "model", NAME)],
        "rowsps",
        to="model",
    ),
)

_LOAD = (
    Panel(
        "Capacity used",
        "What is offered over what the lanes can serve within the objective, of each model at its fullest replica. This is the figure to "
        "scale by.",
        [newest(c.CAPACITY_UTILIZATION.name, "model", NAME)],
        "percentunit",
        limits=worse_above(0.7, 1.0),
        to="model",
    ),
    Panel(
        "Rows waiting",
        "Rows in the queues. Batching keeps some; growth that doesn't end is overload.",
        [newest(c.QUEUE_ROWS.name, "model", NAME, "sum")],
        to="model",
    ),
    Panel(
        "Refused for their deadline",
        "Requests that got no run: their deadline was past (expired), couldn't be kept (hopeless), or others could be answered instead "
        "(given_up).",
        [rate(c.DROPPED.name, "model, reason", NAME)],
        "reqps",
        to="model",
    ),
)

_SERVERS = (
    Panel(
        "Event loop busy",
        "Share of the time in which a server's one event loop computes. Near 1 the front is the limit, not the models: more replicas help.",
        [newest(c.LOOP_BUSY.name, "instance", SERVER)],
        "percentunit",
        limits=worse_above(0.7, 0.9),
    ),
    Panel(
        "CPU",
        "Cores that a server's process uses; its process lanes are processes of their own and aren't in it.",
        [(f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])", "{{instance}}")],
    ),
    Panel(
        "Memory",
        "Resident memory of a server's process. Growth without an end is a leak; the pod's limit ends it.",
        [(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}")],
        "bytes",
    ),
    Panel(
        "Connections",
        "Open HTTP connections. Very unequal replicas mean that clients hold long connections: balance requests instead.",
        [newest(c.CONNECTIONS.name, "instance", SERVER)],
    ),
    Panel(
        "Bytes of requests",
        "Bodies held in memory; at limits.inflight_bytes reading pauses, then requests get 503.",
        [newest(c.INFLIGHT_BYTES.name, "instance", SERVER)],
        "bytes",
    ),
    Panel(
        "Who runs",
        "Which version of the server each replica is. Two at once is a roll-out in progress.",
        [newest(c.BUILD_INFO.name, "version, python", SERVER, "count")],
        kind=Kind.STAT,
    ),
)

OVERVIEW = Board(
    "overview",
    "tidegate: overview",
    "Whether anything is wrong, and with which model or server.",
    ("instance", "model"),
    (
        ("Now", _NOW),
        ("Requests", _REQUESTED),
        ("Load", _LOAD),
        (
            "Models",
            (
                Panel(
                    "Models and their versions",
                    "Rows a second of each version in each precision. A name leads to the model's own dashboard.",
                    [(f"sum by (model, version, precision) (rate({c.ROWS_TOTAL.name}{{{NAME}}}[5m]))", "Rows a second")],
                    "rowsps",
                    Kind.TABLE,
                    to="model",
                ),
            ),
        ),
        ("Servers", _SERVERS),
    ),
)
