"""Hundreds of malformed messages over gRPC: each refused with the right code and a useful text, and the next one succeeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.malformed.conftest import Served
from tests.malformed.messages import INFER, WHOLE, all_messages
from tests.server.edges.grpc.wire import Client, connected

CASES = all_messages()
INFERENCES = [name for name, message in CASES.items() if message.method == INFER]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with connected(served.grpc) as one:
        yield one


@pytest.mark.parametrize("name", CASES)
def test_refused_and_the_next_succeeds(client: Client, name: str) -> None:
    message = CASES[name]
    code, text = client.refused(message.method, message.body)
    assert code in message.codes, text
    assert message.text in text
    assert len(text) < 2100
    client.infer(WHOLE)


@pytest.mark.parametrize("name", INFERENCES)
def test_on_a_stream_the_next_succeeds(client: Client, name: str) -> None:
    message = CASES[name]
    wrong, right = client.stream([message.body, WHOLE])
    assert message.text in wrong.error_message
    assert wrong.error_message
    assert not right.error_message


def test_nothing_is_left_behind(served: Served, client: Client) -> None:
    """All cases five times over: the server's memory, descriptors and threads are those that it had after the first time."""

    def everything() -> None:
        for message in CASES.values():
            client.refused(message.method, message.body)

    everything()
    memory, descriptors, threads = served.memory, served.descriptors, served.process.num_threads()
    for _ in range(5):
        everything()
    assert served.memory - memory < 16 << 20
    assert served.descriptors <= descriptors + 2
    assert served.process.num_threads() <= threads + 2
    client.infer(WHOLE)
