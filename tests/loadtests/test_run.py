"""Runs against real servers: every protocol, what counts as due, refused, failed; replay; and the command as a person calls it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.clients.choice import client_for
from loadtests.running.plan import plan
from loadtests.running.replay import read_lines, replayed
from loadtests.running.runner import run
from loadtests.samples import Outcome, Samples
from loadtests.scenario import Scenario, Values
from server.app import App
from server.errors import ConfigError
from tests.server.models import embedding_model, linear_model, place
from tests.server.running import in_thread

TIDEGATE = str(Path(sys.executable).with_name("tidegate"))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    repository = tmp_path_factory.mktemp("models")
    place(repository, "linear", linear_model)
    place(repository, "wide", partial(linear_model, outputs=2048))  # 8 KB a row, which the server compresses for who asks for that
    place(repository, "words", embedding_model, yaml="batching: {pad_axes: {tokens: [1]}}\n")
    recording = {"dir": str(tmp_path_factory.mktemp("recording"))}
    with in_thread(repository, grpc_port=0, recording=recording) as app:
        yield app


def scenario(**values: Any) -> Scenario:
    given = {"name": "t", "warmup": 0.2, "duration": 1.0, "explain": 1.0, "arrivals": {"rate": 60}, "mix": [{"model": "linear"}]}
    return Scenario.model_validate({**given, **values})


def address(app: App, protocol: str) -> str:
    return app.addresses.http if protocol == "http" else app.addresses.grpc


async def measured(told: Scenario, url: str) -> Samples:
    client = client_for(url, told.target)
    try:
        users = told.closed.users if told.closed is not None else 1
        return await run(await plan(told, client), client, users, told.target.timeout, lambda progress: None)
    finally:
        await client.close()


WORDS = {"tokens": {"low": 0, "high": 31}}
TARGETS = [
    {"protocol": "http"},
    {"protocol": "http", "format": "json"},
    {"protocol": "grpc"},
    {"protocol": "grpc-stream", "connections": 2},
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "-".join(map(str, target.values())))
async def test_every_protocol_answers_and_tells_of_its_runs(app: App, target: dict[str, Any]) -> None:
    linear = {"model": "linear", "rows": [1, 4], "priority": 1, "timeout": "20s"}
    words = {"model": "words", "length": [2, 8], "tenant": "a", "values": WORDS}
    found = await measured(scenario(target=target, mix=[linear, words, {"model": "wide"}]), address(app, target["protocol"]))
    assert (found.outcome == Outcome.ANSWERED).all(), found.why
    assert set(found.kind) == {0, 1, 2}
    assert len(found.runs) == len(found.due)
    assert all(run.batch_rows >= 1 and run.compute > 0 for run in found.runs)
    assert (found.sent >= found.due).all()
    assert (found.done > found.sent).all()


async def test_a_closed_loop_keeps_its_users_busy(app: App) -> None:
    found = await measured(scenario(arrivals=None, closed={"users": 3}, duration=0.5), app.addresses.http)
    assert (found.outcome == Outcome.ANSWERED).all()
    starts, ends = np.sort(found.sent), np.sort(found.done)
    in_flight = [int(np.searchsorted(starts, at, "right") - np.searchsorted(ends, at, "right")) for at in starts]
    assert max(in_flight) <= 3


async def test_what_waits_for_a_slow_server_counts_from_when_it_was_due() -> None:
    """A server that answers one at a time, 50 ms each, asked 40 times a second over one connection: the last waits for all before it."""
    told = scenario(arrivals={"rate": 40, "process": "uniform"}, warmup=0, target={"connections": 1})
    server = await asyncio.start_server(_slowly, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await measured(told, f"http://127.0.0.1:{port}")
    assert (found.outcome == Outcome.ANSWERED).all(), found.why
    latency = found.done - found.due
    expected = np.arange(len(latency)) * (0.05 - 1 / 40)
    assert (latency >= expected).all()
    assert (found.sent - found.due).max() < latency.max() / 2  # the generator itself was not what waited


FACTS = b'{"name":"linear","inputs":[{"name":"X","datatype":"FP32","shape":[-1,8]}],"max_batch_size":8}'


async def _slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server of the protocol whose inference takes 50 ms."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
            await reader.readexactly(length)
            body = FACTS
            if head.startswith(b"POST"):
                await asyncio.sleep(0.05)
                body = b'{"model_name":"linear","model_version":"1","outputs":[]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def test_refused_is_not_failed(app: App) -> None:
    """Requests that can't be in time are refused with 503."""
    mix = [{"model": "linear", "timeout": "1us"}]
    for protocol in ("http", "grpc"):
        found = await measured(scenario(mix=mix, target={"protocol": protocol}), address(app, protocol))
        assert Outcome.FAILED not in found.outcome, found.why
        assert Outcome.REFUSED in found.outcome
        assert any("timeout" in why.lower() for why in found.why)


async def test_what_the_server_refuses_as_wrong_has_failed_with_its_words(app: App) -> None:
    mix = [{"model": "linear", "outputs": ["nope"]}]
    found = await measured(scenario(mix=mix, duration=0.3), app.addresses.http)
    assert (found.outcome == Outcome.FAILED).all()
    assert "unexpected inference output 'nope'" in next(iter(found.why))


async def test_a_server_that_goes_away_is_asked_no_faster(app: App) -> None:
    told = scenario(arrivals=None, closed={"users": 4}, duration=1.0, warmup=0)
    client = client_for(app.addresses.http, told.target)
    planned = await plan(told, client)
    await client.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = client_for(f"127.0.0.1:{taken.getsockname()[1]}", told.target)
        found = await run(planned, gone, 4, 1.0, lambda progress: None)
        await gone.close()
    assert (found.outcome == Outcome.FAILED).all()
    assert len(found.due) <= 4 * (1.0 / 0.05 + 2)


async def test_a_run_that_is_cancelled_leaves_nothing_behind(app: App) -> None:
    told = scenario(duration=60)
    client = client_for(app.addresses.http, told.target)
    before = len(asyncio.all_tasks())
    told_once = asyncio.Event()
    task = asyncio.ensure_future(run(await plan(told, client), client, 1, 1.0, lambda progress: told_once.set()))
    async with asyncio.timeout(10):
        await told_once.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await client.close()
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize(
    ("url", "protocol", "said"),
    [
        ("ftp://x", "http", "expected http://HOST:PORT"),
        ("http://127.0.0.1:8000", "grpc", "expected HOST:PORT, the server's gRPC address"),
    ],
)
async def test_an_address_that_cannot_be_one_is_refused(url: str, protocol: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        client_for(url, scenario(target={"protocol": protocol}).target)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_model_that_is_not_there_is_said_before_anything_is_sent(app: App, protocol: str) -> None:
    with pytest.raises(ConfigError, match="'nope' is not found"):
        await measured(scenario(mix=[{"model": "nope"}], target={"protocol": protocol}), address(app, protocol))


async def test_a_recording_is_asked_again_as_it_came(app: App, tmp_path: Path) -> None:
    lines = [{"event": "recording", "v": 1}]
    lines += [
        {"t": 100 + at, "event": "arrival", "model": model, "rows": rows, "length": length, "priority": 0, "tenant": "", "deadline": None}
        for at, model, rows, length in [(0.0, "linear", 2, 1), (0.1, "words", 1, 5), (0.4, "linear", 3, 1)]
    ]
    file = tmp_path / "arrivals-00000001.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"t": 1')
    client = client_for(app.addresses.http, scenario().target)
    found = await run(
        await replayed(read_lines(tmp_path), 2.0, {"tokens": Values(low=0, high=31)}, client, 1.0), client, 1, 5.0, lambda progress: None
    )
    await client.close()
    assert (found.outcome == Outcome.ANSWERED).all(), found.why
    assert found.rows.tolist() == [2, 1, 3]
    assert np.diff(found.due) == pytest.approx([0.05, 0.15])
    assert [line.model for line in read_lines(tmp_path, "words")] == ["words"]
    with pytest.raises(ConfigError, match="no arrivals of model 'other'"):
        read_lines(tmp_path, "other")


def tidegate(*args: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    shown = subprocess.run([TIDEGATE, "loadtest", *args], capture_output=True, text=True, timeout=100, check=False)
    assert shown.returncode == status, shown.stdout + shown.stderr
    return shown


def test_the_command_runs_a_scenario_reports_and_compares(app: App, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("warmup: 200ms\nduration: 6s\narrivals: {rate: 40}\nmix: [{model: linear}]\nslo: {errors: 0%, p99: 30s}\n")
    url = f"http://{app.addresses.http}"
    html, before, after = (str(tmp_path / name) for name in ("r.html", "before.json", "after.json"))
    shown = tidegate("run", str(file), "--url", url, "--html", html, "--json", before)
    assert "kept errors 0.00%" in shown.stdout
    assert "of 6 s" in shown.stderr  # progress, where there's no terminal
    assert Path(html).read_text().startswith("<!doctype html>")
    file.write_text(file.read_text().replace("30s", "1us"))
    missed = tidegate("run", str(file), "--url", url, "--json", after, status=3)
    assert "MISSED p99" in missed.stdout
    compared = tidegate("compare", before, after, "--tolerance", "1.0")
    assert "answers a second" in compared.stdout


def test_the_command_says_what_is_wrong_without_a_trace(app: App, tmp_path: Path) -> None:
    for args, said in (
        (("run", "nope"), "no scenario 'nope'"),
        (("run", "steady", "--url", f"http://{app.addresses.http}"), "'digits' is not found"),
        (("run", "steady", "--rate", "fast"), "--rate: expected requests a second"),
        (("run", "steady", "--html", str(tmp_path / "no" / "r.html")), "its folder isn't there"),
        (("compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")), "can't be read"),
        (
            ("mlperf", "steady", "--mode", "fast", "--url", f"http://{app.addresses.http}", "--model", "linear"),
            "expected one of server, offline",
        ),
    ):
        shown = tidegate(*args, status=1)
        assert said in shown.stderr
        assert "Traceback" not in shown.stderr


def test_loadgen_measures_a_server_and_gives_its_own_verdict(app: App) -> None:
    args = ("--model", "linear", "--url", f"http://{app.addresses.http}", "--duration", "300ms", "--min-queries", "50", "--json", "-")
    single = json.loads(tidegate("mlperf", "steady", "--mode", "single-stream", "--qps", "5000", *args).stdout)
    assert (single["valid"], single["failed"]) == (True, 0)
    assert single["queries"] >= 50
    late = tidegate("mlperf", "steady", "--mode", "server", "--qps", "100", "--objective", "1us", *args, status=3)
    assert json.loads(late.stdout)["valid"] is False


def test_locust_asks_by_every_protocol(app: App, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("warmup: 0s\nduration: 4s\nexplain: 100%\narrivals: {rate: 8}\nmix: [{model: linear}]\n")
    source = str(Path(__file__).parents[2] / "loadtests" / "locustfile.py")
    users = ("BinaryUser", "JsonUser", "GrpcUser", "StreamUser")
    command = [sys.executable, "-m", "locust", "-f", source, "-H", f"http://{app.addresses.http}", "--headless", "--only-summary", "--json"]
    shown = subprocess.run(
        [*command, "--scenario", str(file), "--grpc-host", app.addresses.grpc, *users],
        capture_output=True, text=True, timeout=100, check=False, cwd=Path(source).parents[1], env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    found = {(entry["method"], entry["name"]): entry for entry in json.loads(shown.stdout)}
    expected = {(kind, "linear") for kind in ("POST", "GrpcUser", "StreamUser")}
    expected |= {("RUN", f"linear {what}") for what in ("rows", "queue", "compute")}
    assert {key: entry["num_failures"] for key, entry in found.items()} == dict.fromkeys(expected, 0)
