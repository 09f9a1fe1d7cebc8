"""MLPerf's LoadGen on MiniLM, and an emulated T4 at the rates that a T4 could bear: `python -m benchmarks.loadgen`, `make bench-loadgen`.

About seven minutes. LoadGen's rules on a model of our own: no MLPerf result. Exit status 0 when everything could be measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from math import exp
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.command import run
from benchmarks.emulated_rates import at_rates, rates_repository
from benchmarks.harness import BUILD, TIDEGATE, BenchError, Report, Target, tidegate
from benchmarks.ragged_text import LOG_MEDIAN, LONGEST, MODEL, SHORTEST, SIGMA, text_repository
from examples.console import heading, step
from examples.prepare import prepare

OBJECTIVE = 15  # times what a request takes alone
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of offline's rows/s, tried from the highest down until LoadGen says VALID
MUST = 0.7
SECONDS, QUERIES = 60, 1000
SHORT = 10
PATIENCE = 400.0
NO_VERDICT = 3  # `tidegate loadtest mlperf` where LoadGen says INVALID


def measure(report: Report, console: Console) -> None:
    """Fill the report."""
    heading(console, "The models")
    models = prepare(console)
    heading(console, "Measurements")
    with (
        step(console, "MiniLM, texts of unlike length, by LoadGen"),
        tidegate(text_repository(models, BUILD / "loadgen-text"), "loadgen-text") as ours,
    ):
        by_loadgen(report, ours.ready["http"])
    with (
        step(console, "an emulated T4 at a T4's rates"),
        tidegate(rates_repository(BUILD / "loadgen-emulated"), "loadgen-emulated") as ours,
    ):
        at_rates(report, ours.ready["http"])


def by_loadgen(report: Report, address: str) -> None:
    """Alone, all at once, then by Poisson arrivals at falling rates until LoadGen calls it valid: one target."""
    scenario = _scenario(BUILD / "loadgen.yaml")
    alone = _mlperf(scenario, address, "single-stream", qps=100, seconds=SHORT, queries=100)
    offline = _mlperf(scenario, address, "offline", qps=300, seconds=SECONDS, queries=QUERIES)
    objective = OBJECTIVE * alone["p50"]
    tried: dict[float, dict[str, Any]] = {}
    for share in SHARES:
        tried[share] = _mlperf(scenario, address, "server", share * offline["rate"], SECONDS, QUERIES, objective)
        if tried[share]["valid"]:
            break
    report.details["MiniLM by LoadGen"] = {"single-stream": alone, "offline": offline, "server": tried, "objective_s": objective}
    valid = max((share for share, found in tried.items() if found["valid"]), default=0.0)
    last = tried[min(tried)]
    note = (
        f"offline {offline['rate']:.0f} rows/s; alone {alone['p50'] * 1e3:.1f} ms; objective {objective * 1e3:.0f} ms; p99 "
        f"{last['p99'] * 1e3:.0f} ms at {min(tried):.2f}; min_duration {SECONDS} s, min_query_count {QUERIES}"
    )
    name = "LoadGen, MiniLM: the highest VALID rate of server mode / offline's rows/s"
    report.targets.append(Target(name, valid, MUST, note=note))


def _scenario(path: Path) -> Path:
    length = {"kind": "lognormal", "median": exp(LOG_MEDIAN), "sigma": SIGMA, "min": SHORTEST, "max": LONGEST}
    values = {"input_ids": {"low": 1000, "high": 20000}, "attention_mask": {"low": 1, "high": 1}}
    asked = {"model": MODEL, "length": length, "values": values}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"target": {"connections": 1024}, "mix": [asked]}))
    return path


def _mlperf(scenario: Path, address: str, mode: str, qps: float, seconds: int, queries: int, objective: float = 1.0) -> dict[str, Any]:
    """One run of LoadGen in a process of its own. Raises BenchError where it gave no figures, or a request had no answer."""
    options = {"--mode": mode, "--qps": f"{qps:.1f}", "--duration": f"{seconds}s", "--min-queries": str(queries)}
    options |= {"--url": f"http://{address}", "--objective": f"{objective:.6f}s", "--json": "-"}
    command = [TIDEGATE, "loadtest", "mlperf", str(scenario)]
    command += [word for option in options.items() for word in option]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if shown.returncode not in (0, NO_VERDICT):
        raise BenchError(f"{' '.join(command[1:4])} --mode {mode} failed: {shown.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(shown.stdout)
    if found["failed"]:
        raise BenchError(f"--mode {mode}: {found['failed']} of {found['queries']} requests had no answer: {found['summary'][-300:]}")
    return found


if __name__ == "__main__":
    sys.exit(run("loadgen", measure))
