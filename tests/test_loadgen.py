"""The load generator against a server whose answers are known: what it counts, and that its arrivals wait for no answer."""

from __future__ import annotations

import shutil
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import harness
from benchmarks.harness import BenchError, Load, Measured, Shot, run_load, write_shots

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
GET = Shot(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2, b"ok")


class Server(socketserver.ThreadingTCPServer):
    """Answers each request after `delay` seconds; every `refuse`-th with 503."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, delay: float, refuse: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay, self.refuse = delay, refuse
        self.asked = 0
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """The client hangs up at the end."""


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        while self._head_came():
            with self.server.lock:
                self.server.asked += 1
                refused = self.server.refuse and self.server.asked % self.server.refuse == 0
            time.sleep(self.server.delay)
            status = b"503 Service Unavailable" if refused else b"200 OK"
            self.wfile.write(b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\nok" % status)

    def _head_came(self) -> bool:
        while line := self.rfile.readline():
            if line == b"\r\n":
                return True
        return False


@contextmanager
def serving(delay: float = 0.0, refuse: int = 0) -> Iterator[str]:
    with Server(delay, refuse) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BUILD", tmp_path_factory.mktemp("bench"))


def measured(address: str, load: Load, shot: Shot = GET) -> Measured:
    return run_load(write_shots("get", [shot]), address, load)


def test_arrivals_wait_for_no_answer_while_a_connection_is_idle() -> None:
    with serving(delay=0.2) as address:
        found = measured(address, Load(64, seconds=1.0, warmup=0.0, rate=100.0, deadline=30.0))
    assert 50 < found.ok < 160
    assert (found.refused, found.unsent) == (0, 0)
    assert found.p50_ms >= 200
    assert found.within == found.ok
    assert found.in_time == 1.0
    assert found.goodput == found.ok / found.seconds


def test_answers_after_the_deadline_are_counted_apart() -> None:
    with serving(delay=0.2) as address:
        found = measured(address, Load(64, seconds=0.5, warmup=0.0, rate=100.0, deadline=0.1))
    assert found.ok > 10
    assert (found.within, found.in_time, found.goodput) == (0, 0.0, 0.0)


def test_a_refusal_is_an_answer_where_there_is_a_deadline() -> None:
    with serving(refuse=2) as address:
        found = measured(address, Load(8, seconds=0.5, warmup=0.0, rate=200.0, deadline=30.0))
        assert abs(found.ok - found.refused) <= 1
        assert found.in_time == pytest.approx(0.5, abs=0.05)
        with pytest.raises(BenchError, match="status 503"):
            measured(address, Load(8, seconds=0.5, warmup=0.0, rate=200.0))


def test_what_finds_no_connection_is_unsent() -> None:
    with serving(delay=0.3) as address:
        found = measured(address, Load(2, seconds=1.0, warmup=0.0, rate=100.0, deadline=30.0))
    assert found.ok <= 10
    assert found.unsent > 30
    assert found.in_time < 0.3


def test_a_wrong_answer_is_an_error_with_a_deadline_too() -> None:
    with serving() as address, pytest.raises(BenchError, match="content"):
        measured(address, Load(2, seconds=0.3, warmup=0.0, rate=50.0, deadline=1.0), Shot(GET.request, 2, b"no"))
