"""Random sequences of hot and cold requests, cut at random bytes, with SIGTERM somewhere: nothing accepted is lost or out of order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.app import App
from server.metrics.collector import registry_of
from tests.server.models import identity_model
from tests.server.running import Answer, Wire, http, in_thread, infer_binary, infer_json, running, wire

KINDS = ("binary", "json", "cold", "slow cold", "refused")


@dataclass(frozen=True)
class Sent:
    """One request of a sequence, and what its answer must be."""

    kind: str
    number: int

    def bytes(self) -> bytes:
        rows = np.full((1, 16), self.number, np.float32)
        if self.kind == "binary":
            return infer_binary("identity", rows)
        if self.kind == "json":
            return infer_json("identity", rows, id=str(self.number))
        if self.kind == "refused":
            return infer_json("nobody", rows)
        if self.kind == "slow cold":
            return http("/v2/repository/index", b'{"ready": true}')
        return http("/v2/models/identity", method="GET")

    def check(self, answer: Answer) -> None:
        if self.kind == "binary":
            assert answer.tensor()[0] == self.number
        elif self.kind == "json":
            assert (answer.json()["id"], answer.json()["outputs"][0]["data"][0]) == (str(self.number), self.number)
        elif self.kind == "refused":
            assert answer.status == 404
        elif self.kind == "slow cold":
            assert answer.json() == [{"name": "identity", "version": "1", "state": "READY", "reason": ""}]
        else:
            assert answer.json()["name"] == "identity"


async def read_all(connection: Wire, sent: list[Sent]) -> tuple[int, int]:
    """Check answers in order until the end; (how many came, how many of them were inferences)."""
    came = hot = 0
    for request in sent:
        try:
            answer = await connection.answer()
        except EOFError:
            break
        request.check(answer)
        came += 1
        hot += request.kind in ("binary", "json", "refused")
        if answer.headers.get("connection") == "close":
            break
    assert await connection.closed()
    return came, hot


async def write_in_pieces(connection: Wire, data: bytes, cuts: list[int], term: asyncio.Event, term_at: int) -> None:
    """Send `data` cut at `cuts`; `term` is set before byte `term_at` leaves."""
    points = sorted({0, term_at, len(data), *(cut % len(data) for cut in cuts)})
    for start, stop in pairwise(points):
        if start >= term_at:
            term.set()
        if connection.writer.is_closing():
            return
        connection.send(data[start:stop])
        await asyncio.sleep(0)
    term.set()


async def scenario(repository: Path, sequences: list[list[str]], cuts: list[int], term_share: float) -> None:
    async with running(repository) as app:
        term = asyncio.Event()
        stopping = asyncio.ensure_future(_stop_at(app, term))
        jobs = []
        for kinds in sequences:
            sent = [Sent(kind, number) for number, kind in enumerate(kinds)]
            jobs.append(_converse(app, sent, cuts, term, term_share))
        results = await asyncio.gather(*jobs)
        counted = answered(app)
        await stopping
        assert sum(hot for _, hot in results) == counted


async def _converse(app: App, sent: list[Sent], cuts: list[int], term: asyncio.Event, term_share: float) -> tuple[int, int]:
    async with wire(app) as connection:
        data = b"".join(request.bytes() for request in sent)
        writing = asyncio.ensure_future(write_in_pieces(connection, data, cuts, term, int(term_share * len(data))))
        result = await read_all(connection, sent)
        await writing
        return result


async def _stop_at(app: App, term: asyncio.Event) -> None:
    await term.wait()
    await app.http.drain(10.0)


def answered(app: App) -> int:
    """Inferences that the server answered, by its own count."""
    total = 0.0
    text = generate_latest(registry_of(app.recorder, list)).decode()
    for family in text_string_to_metric_families(text):
        if family.name == "tidegate_requests":
            total += sum(sample.value for sample in family.samples if sample.name.endswith("_total"))
    return int(total)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drain")
    identity_model(root / "identity" / "1" / "model.onnx")
    return root


@given(
    sequences=st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 5000), max_size=40),
    term_share=st.floats(0, 1),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_accepted_is_lost_or_out_of_order(small: Path, sequences: list[list[str]], cuts: list[int], term_share: float) -> None:
    asyncio.run(scenario(small, sequences, cuts, term_share))


def test_every_cut_of_one_sequence(small: Path) -> None:
    """The same sequence cut at each of its bytes, on a connection each, against one server."""

    async def all_cuts() -> None:
        sent = [Sent(kind, number) for number, kind in enumerate(("binary", "cold", "json"))]
        data = b"".join(request.bytes() for request in sent)
        async with running(small) as app:
            for cut in range(1, len(data)):
                async with wire(app) as connection:
                    connection.send(data[:cut])
                    await asyncio.sleep(0)
                    connection.send(data[cut:])
                    for request in sent:
                        request.check(await connection.answer())

    asyncio.run(all_cuts())


def test_sigterm_under_load_ends_in_order(small: Path) -> None:
    """A real process with 8 clients in full swing gets SIGTERM: every answer that was begun is whole, and the exit status is 0."""
    from tests.server.test_serve import serving

    with serving(small, TIDEGATE_DRAIN_DELAY="100ms") as (process, line):
        host, port = line["http"].split(":")

        async def client(number: int) -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            connection, count = Wire(reader, writer), 0
            while True:
                connection.send(Sent("binary", number).bytes())
                try:
                    answer = await connection.answer()
                except EOFError:
                    break
                Sent("binary", number).check(answer)
                count += 1
                if number == 0 and count == 50:
                    os.kill(process.pid, signal.SIGTERM)
                if answer.headers.get("connection") == "close":
                    break
            connection.close()
            return count

        async def all_clients() -> list[int]:
            return await asyncio.gather(*(client(number) for number in range(8)))

        counts = asyncio.run(all_clients())
        assert min(counts) >= 1
        assert process.wait(20) == 0


def whole_answer(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_whom_the_kernel_connected_before_the_listener_closed_is_answered(small: Path, host: str) -> None:
    """200 clients connect and ask while the loop is busy, then the drain begins before it has accepted one of them.
    Bound to all addresses, a handshake may take a while."""
    with in_thread(small, host=host) as app:
        gate = threading.Event()
        drained: list[asyncio.Future[bool]] = []

        def busy() -> None:
            gate.wait(20)
            drained.append(asyncio.ensure_future(app.http.drain(10)))

        app.edge.loop.call_soon_threadsafe(busy)
        connections = [socket.create_connection(("127.0.0.1", app.http.port), 20) for _ in range(200)]
        for number, connection in enumerate(connections):
            connection.sendall(Sent("binary", number).bytes() if number % 2 else Sent("cold", number).bytes())
        gate.set()
        for number, connection in enumerate(connections):
            with closing(connection):
                answer = whole_answer(connection)
                assert answer.startswith(b"HTTP/1.1 200"), answer
                assert number % 2 == 0 or b"connection: close" in answer
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", app.http.port), 20)


def test_who_connects_and_says_nothing_does_not_hold_the_drain(small: Path) -> None:
    async def scene() -> None:
        async with running(small) as app, wire(app) as silent, wire(app) as slow:
            await slow.ask(Sent("binary", 1).bytes())
            drained = asyncio.ensure_future(app.http.drain(10))
            assert await slow.closed()
            silent.send(Sent("binary", 2).bytes()[:10])  # its first request may still come
            silent.send(Sent("binary", 2).bytes()[10:])
            Sent("binary", 2).check(await silent.answer())
            assert await silent.closed()
            assert await drained
        async with running(small) as app, wire(app) as silent:
            assert await app.http.drain(10)
            assert await silent.closed()

    asyncio.run(scene())


def test_sigterm_resets_nobody(small: Path) -> None:
    """A connection a request, from 16 threads, until connections are refused: whoever connected has an answer, to the very last."""
    from tests.server.test_serve import serving

    with serving(small, TIDEGATE_DRAIN_DELAY="0s") as (process, line):
        host, port = line["http"].split(":")
        asked = threading.Semaphore(0)

        def client(number: int) -> int:
            sent, count = Sent("binary", number), 0
            while True:
                try:
                    connection = socket.create_connection((host, int(port)), 20)
                except ConnectionRefusedError:
                    return count
                with closing(connection):
                    connection.sendall(sent.bytes().replace(b"host:", b"connection: close\r\nhost:", 1))
                    answer = whole_answer(connection)
                assert answer.startswith(b"HTTP/1.1 200"), answer
                count += 1
                asked.release()

        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client, number) for number in range(16)]
            for _ in range(400):
                assert asked.acquire(timeout=20)
            os.kill(process.pid, signal.SIGTERM)
            assert sum(each.result(60) for each in clients) >= 400
        assert process.wait(20) == 0
