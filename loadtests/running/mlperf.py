"""MLPerf's LoadGen against a server: the arrivals, the length and the verdict are LoadGen's, the requests a scenario's.

Server mode: Poisson arrivals, valid if 99 % of answers come within the objective. Offline: everything at once, for rows a second.
SingleStream: one after another. Reddi et al. 2020, "MLPerf Inference Benchmark" (arXiv 1911.02549). One query is one request of one sample.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import uvloop

from loadtests.clients.base import Client
from loadtests.running.plan import Plan, Shot
from loadtests.samples import Outcome
from server.errors import ConfigError

MODES = {"server": lg.TestScenario.Server, "offline": lg.TestScenario.Offline, "single-stream": lg.TestScenario.SingleStream}
RATES = {"server": "Completed samples per second", "offline": "Samples per second"}
SAMPLES = 1024  # different requests that LoadGen draws from
_RESULT = re.compile(r"^(.+?)\s*:\s*(\S+)\s*$")


@dataclass(frozen=True, slots=True)
class Terms:
    """What LoadGen is told: `mode` of MODES, rates in queries a second, times in seconds. `objective` is for server mode."""

    mode: str
    qps: float
    objective: float = 0.1
    min_seconds: float = 60.0
    min_queries: int = 1000

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode {self.mode!r}: expected one of {', '.join(MODES)}")
        if not (0 < self.qps <= 1e5 and self.objective > 0 and 0 < self.min_seconds <= 86400):
            raise ConfigError(f"expected a rate up to 100000/s, an objective and a duration, got {self}")


@dataclass(frozen=True, slots=True)
class Result:
    """LoadGen's verdict. `rate` is samples a second (for single-stream: 1 over the 90th percentile's latency); `failed` counts requests
    without an answer, which makes a run invalid whatever LoadGen says."""

    mode: str
    valid: bool
    rate: float
    p50: float
    p90: float
    p99: float
    queries: int
    failed: int
    summary: str


def measure(terms: Terms, connect: Callable[[], Client], make: Callable[[Client], Any]) -> Result:
    """Run LoadGen in this thread, the requests in a loop of their own. `connect` and `make` (a plan) are called in that loop."""
    with _Loop() as loop, tempfile.TemporaryDirectory(prefix="tidegate-loadgen-") as folder:
        client, plan = loop.call(_connected(connect, make))
        under_test = _UnderTest(loop, client, plan)
        try:
            _start(terms, under_test, folder)
        finally:
            loop.call(client.close())
        return _read(terms, Path(folder), under_test)


async def _connected(connect: Callable[[], Client], make: Callable[[Client], Any]) -> tuple[Client, Plan]:
    client = connect()
    try:
        return client, await make(client)
    except BaseException:
        await client.close()
        raise


class _Loop:
    """An event loop in a thread: LoadGen calls from threads of its own."""

    def __enter__(self) -> _Loop:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def call(self, work: Any) -> Any:
        """Run a coroutine there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class _UnderTest:
    """What LoadGen tests: hands its queries to the loop and tells it of each answer."""

    def __init__(self, loop: _Loop, client: Client, plan: Plan) -> None:
        self._loop = loop.loop
        self._client = client
        self._shots: Sequence[Shot] = plan.shots
        self._tasks: set[asyncio.Task[None]] = set()
        self.answered = self.failed = 0
        self.why = ""

    @property
    def samples(self) -> int:
        return min(SAMPLES, len(self._shots))

    def issue(self, queries: Sequence[Any]) -> None:
        """LoadGen's, in its thread."""
        asked = [(query.id, query.index) for query in queries]
        self._loop.call_soon_threadsafe(self._ask_all, asked)

    def _ask_all(self, asked: Sequence[tuple[int, int]]) -> None:
        for number, index in asked:
            task = self._loop.create_task(self._ask(number, self._shots[index]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, number: int, shot: Shot) -> None:
        answer = await self._client.ask(shot.prepared, shot.headers)
        if answer.outcome is Outcome.ANSWERED:
            self.answered += 1
        else:
            self.failed += 1
            self.why = self.why or answer.why
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, 0, 0)])


def _start(terms: Terms, under_test: _UnderTest, folder: str) -> None:
    settings = lg.TestSettings()
    settings.scenario = MODES[terms.mode]
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(terms.min_seconds * 1e3)
    settings.min_query_count = terms.min_queries
    settings.server_target_qps = settings.offline_expected_qps = terms.qps
    settings.server_target_latency_ns = round(terms.objective * 1e9)
    settings.single_stream_expected_latency_ns = round(1e9 / terms.qps)
    logs = lg.LogSettings()
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = folder, False
    logs.log_output, logs.enable_trace = output, False
    system = lg.ConstructSUT(under_test.issue, lambda: None)
    library = lg.ConstructQSL(under_test.samples, under_test.samples, lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(system, library, settings, logs)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(system)


def _read(terms: Terms, folder: Path, under_test: _UnderTest) -> Result:
    """LoadGen's own summary. Raises ConfigError where it wrote none."""
    summary = (folder / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    matches = filter(None, map(_RESULT.match, summary.splitlines()))
    found: dict[str, str] = {match[1]: match[2] for match in matches}
    try:
        p50, p90, p99 = (float(found[f"{q}.00 percentile latency (ns)"]) / 1e9 for q in (50, 90, 99))
        rate = 1 / p90 if terms.mode == "single-stream" else float(found[RATES[terms.mode]])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"LoadGen's summary isn't as expected ({error!r}): {summary[:300]}") from error
    valid = found.get("Result is") == "VALID" and not under_test.failed
    total = under_test.answered + under_test.failed
    note = f"\n{under_test.failed} of {total} requests had no answer: {under_test.why}" if under_test.failed else ""
    return Result(terms.mode, valid, rate, p50, p90, p99, total, under_test.failed, summary + note)
