"""Hundreds of malformed requests over HTTP: each refused with the right status and a useful text, and the next one succeeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.malformed.conftest import Served
from tests.malformed.documents import Case, all_documents
from tests.malformed.framing import BROKEN, URL, all_framing
from tests.malformed.http_client import GOOD, Answer, Connection, connected
from tests.server.running import http

CASES: dict[str, Case] = {**all_documents(), **all_framing()}


class Kept:
    """A connection for all cases, made again where a case ended it."""

    def __init__(self, served: Served) -> None:
        self._address = served.http
        self._connection = Connection(served.http)

    def ask(self, case: Case) -> Answer:
        answer = self._connection.ask(case.request)
        if answer.ends or case.hangs:
            self.close()
            self._connection = Connection(self._address)
        return answer

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def kept(served: Served) -> Iterator[Kept]:
    one = Kept(served)
    yield one
    one.close()


@pytest.mark.parametrize("name", CASES)
def test_refused_and_the_next_succeeds(kept: Kept, name: str) -> None:
    """The good request comes on the same connection, where that goes on."""
    case = CASES[name]
    answer = kept.ask(case)
    assert answer.status in case.statuses, answer
    assert case.text in answer.text, answer
    assert 5 <= len(answer.text) < 2000
    assert kept.ask(GOOD).status == 200


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_http_ends_its_connection_only(served: Served, kept: Kept, name: str) -> None:
    broken = BROKEN[name]
    with connected(served.http) as connection:
        answer = connection.ask(broken.sent)
        assert answer.status in broken.statuses, answer
        assert connection.ended()
    assert kept.ask(GOOD).status == 200


@pytest.mark.parametrize("sent", [0, 1, 20, 100, 180])
def test_a_body_that_never_ends_is_forgotten_with_its_connection(served: Served, kept: Kept, sent: int) -> None:
    """Connections that say more than they send, and go."""
    for _ in range(20):
        with connected(served.http) as connection:
            connection.socket.sendall(http(URL, headers={"content-length": "5000"}) + b"{" * sent)
    assert kept.ask(GOOD).status == 200


def test_nothing_is_left_behind(served: Served, kept: Kept) -> None:
    """All cases five times over: the server's memory, descriptors and threads are those that it had after the first time."""

    def everything() -> None:
        for case in CASES.values():
            kept.ask(case)
        for broken in BROKEN.values():
            with connected(served.http) as connection:
                connection.ask(broken.sent)

    everything()
    memory, descriptors, threads = served.memory, served.descriptors, served.process.num_threads()
    for _ in range(5):
        everything()
    assert served.memory - memory < 16 << 20
    assert served.descriptors <= descriptors + 2
    assert served.process.num_threads() <= threads + 2
    assert served.process.is_running()
