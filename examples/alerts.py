"""An alert from end to end: an emulated T4 is asked for more than it can serve, the monitor tells a webhook, and a Prometheus that has the
rendered rules agrees; then the load goes, and both say that it's over. `python -m examples.alerts`, or `make demo-alerts`.

Exit status: 0 both fired and both ended, together; 1 they didn't, or a part failed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from examples.alert_parts import ALERT, PrometheusProcess, TooLateError, Webhook, child, load, until
from examples.console import heading, make_console, say, step
from examples.prepare import ROOT, TIDEGATE
from examples.serving import ServerError, ServerProcess

WORK = ROOT / "build" / "alerts"
MODEL = "bert_large"
CLIENTS = 48
QUIET_SECONDS = 4.0
WAIT = 90.0
APART = 3.0
"""How far apart the monitor and Prometheus may be: each looks once a second at a figure that the other read up to a second earlier."""

MODEL_YAML = """\
backend: emulated
emulate: {table: t4, model: bert_large_384, precision: fp16}
batching: {max_rows: 32}
inputs: {x: {dtype: FP32, shape: [-1, 16]}}
outputs: {y: {dtype: FP32, shape: [-1, 4]}}
"""

RULES = """\
metrics:
  - name: inference_latency
    threshold: 200ms
    alert_level: WARNING
    window: 10s                     # a minute unless said; ten seconds, so that the end can be watched
  - name: gpu_utilization
    threshold: 90%                  # has no data here: no GPU, and an emulated one has no such figure
    alert_level: CRITICAL
pack: false
watchdog: false
interval: 1s
sources: {{targets: ["{metrics}"], nvml: "off", host: false}}
notifiers: {{hook: {{type: webhook, url: "{hook}"}}}}
group: {{interval: 0s}}
state: {state}
"""


def main() -> int:
    """The command. Its exit status."""
    console = make_console()
    shutil.rmtree(WORK, ignore_errors=True)
    model = WORK / "models" / MODEL
    (model / "1").mkdir(parents=True)
    (model / "model.yaml").write_text(MODEL_YAML)
    ports = ("--http-port", "0", "--grpc-port", "off", "--metrics-port", "0")
    server = ServerProcess([TIDEGATE, "serve", "--repository", str(WORK / "models"), *ports], WORK / "server.log")
    try:
        heading(console, "A server, a monitor, a webhook and a Prometheus")
        with step(console, "start the server: BERT large at the pace of a T4 (a published table's; nothing is measured)"):
            ready = server.start()
        with watching(console, ready["metrics"]) as (hook, prometheus):
            return shown(console, ready["http"], hook, prometheus)
    except (ServerError, TooLateError, OSError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        server.stop()


@contextmanager
def watching(console: Console, metrics: str) -> Iterator[tuple[Webhook, PrometheusProcess]]:
    """The monitor of RULES with a webhook to tell, and a Prometheus with what is rendered from the same file."""
    rules = WORK / "rules.yaml"
    with Webhook() as hook:
        rules.write_text(RULES.format(metrics=metrics, hook=hook.url, state=WORK / "monitor.db"))
        console.print(rules.read_text().split("pack:")[0].rstrip(), markup=False, soft_wrap=True)
        tools = subprocess.run([ROOT / ".ci" / "tools"], stdout=sys.stderr, check=False)
        if tools.returncode:
            raise ServerError("the tools that the demo needs couldn't be fetched: see above")
        subprocess.run([TIDEGATE, "monitor", "render", str(rules), "--output", str(WORK / "rendered.yaml")], check=True)
        command = [TIDEGATE, "monitor", "run", str(rules)]
        with PrometheusProcess(WORK, metrics) as prometheus, child(command, WORK / "monitor.log"):
            until(prometheus.scraped, WAIT, "Prometheus scraped the server")
            yield hook, prometheus


def shown(console: Console, http: str, hook: Webhook, prometheus: PrometheusProcess) -> int:
    """Quiet, a flood, quiet again: when each of the two fired and ended."""
    heading(console, "What happens")
    url = f"http://{http}/v2/models/{MODEL}/infer"
    with load(url, 1):
        with step(console, "one client, some 12 ms a request: nothing fires"):
            quiet = time.monotonic() + QUIET_SECONDS
            until(lambda: time.monotonic() > quiet, WAIT, "a quiet time passed")
        if hook.told or prometheus.fired:
            raise TooLateError("an alert fired while all was quiet")
        with step(console, f"{CLIENTS} clients more: latency goes over 200 ms"), load(url, CLIENTS):
            until(lambda: hook.at("firing") and prometheus.fired, WAIT, "both fired")
        with step(console, "they leave: the slow answers leave the window of 10 s"):
            until(lambda: hook.at("resolved") and prometheus.ended, WAIT, "both ended")
    return report(console, hook, prometheus)


def report(console: Console, hook: Webhook, prometheus: PrometheusProcess) -> int:
    """The times side by side, and what the webhook was told."""
    table = Table("", "monitor, at the webhook", "Prometheus", "apart")
    worst = 0.0
    for what, ours, theirs in (("fires", hook.at("firing"), prometheus.fired), ("is over", hook.at("resolved"), prometheus.ended)):
        assert ours is not None
        assert theirs is not None
        worst = max(worst, abs(ours - theirs))
        start = prometheus.started
        table.add_row(f"{ALERT} {what}", f"{ours - start:.1f} s", f"{theirs - start:.1f} s", f"{abs(ours - theirs):.1f} s")
    console.print(table)
    for body in hook.bodies:
        alert = body["alerts"][0]
        say(console, f"{body['status']}: {alert['level']} {alert['annotations']['summary']}")
    agree = worst <= APART
    say(console, f"They {'agree' if agree else 'do not agree'}: at most {worst:.1f} s apart, {APART:g} s allowed.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
