"""A head that comes again isn't parsed again, and nothing can be told from the answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.app import App
from server.edges.infer_http import InferProtocol
from tests.server.running import Wire, http, infer_binary, infer_json, running, wire

ONE = np.ones((1, 16), np.float32)


def serving_side(app: App) -> InferProtocol:
    """The server's end of the only connection."""
    (protocol,) = app.http.main.open_connections
    assert isinstance(protocol, InferProtocol)
    return protocol


class Deaf:
    """A parser that must not be asked."""

    def feed_data(self, data: bytes) -> None:
        raise AssertionError("parsed again")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("asked again")


async def test_the_parser_sees_the_first_only(app: App, connection: Wire) -> None:
    assert (await connection.ask(infer_binary("identity", ONE))).status == 200
    serving_side(app).parser = Deaf()  # type: ignore[assignment]
    for value in range(5):
        answer = await connection.ask(infer_binary("identity", ONE * value))
        np.testing.assert_array_equal(answer.tensor(), np.full(16, value))
    assert app.edge.inflight.used == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        infer_json("nobody", ONE),
        http("/v2/models/identity/infer", b'{"inputs": []}', headers={"inference-header-content-length": "99"}),
        http("/v2/models/identity/infer", b'{"inputs": []}', headers={"inference-header-content-length": "x"}),
        http("/v2/models/identity/infer", b"{", headers={"content-encoding": "br"}),
        http("/v2/models/identity/infer", b"not JSON"),
    ],
    ids=["unknown model", "head too long", "head no number", "encoding", "body"],
)
async def test_what_is_refused_is_refused_again(app: App, request_bytes: bytes) -> None:
    async with wire(app) as connection:
        answers = [await connection.ask(request_bytes) for _ in range(3)]
        assert len({(answer.status, answer.body) for answer in answers}) == 1
        assert answers[0].status >= 400
        assert (await connection.ask(infer_binary("identity", ONE))).status == 200


async def test_close_is_honoured_after_a_known_head(connection: Wire) -> None:
    for _ in range(2):
        assert (await connection.ask(infer_json("identity", ONE))).status == 200
    answer = await connection.ask(infer_json("identity", ONE, headers={"connection": "close"}))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await connection.closed()


async def test_a_drain_ends_the_connection_after_the_answer(repository: Path) -> None:
    async with running(repository) as app, wire(app) as connection:
        for _ in range(2):
            assert (await connection.ask(infer_json("identity", ONE))).status == 200
        connection.send(infer_json("identity", ONE))
        stopping = asyncio.ensure_future(app.http.drain(10.0))
        answers = 0
        try:
            while (await connection.answer()).status == 200:
                answers += 1
        except EOFError:
            pass
        assert answers <= 1  # taken up before the drain or not at all
        connection.close()
        assert await stopping


KINDS = {
    "binary": lambda value: infer_binary("identity", ONE * value),
    "two rows": lambda value: infer_binary("identity", np.full((2, 16), value, np.float32)),
    "json": lambda value: infer_json("identity", ONE * value),
    "traced": lambda value: infer_binary("identity", ONE * value, headers={"traceparent": f"00-{value:032x}-{value:016x}-01"}),
    "large": lambda value: infer_binary("wide", np.full((1, 20_000), value, np.float32)),
    "cold": lambda value: http("/v2/models/identity", method="GET"),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequence=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 9)), min_size=2, max_size=12),
    joined=st.lists(st.booleans(), min_size=12, max_size=12),
    cut=st.integers(1, 300),
)
def test_any_sequence(repository: Path, sequence: list[tuple[str, int]], joined: list[bool], cut: int) -> None:
    """Requests of repeating kinds, some sent together with the next, some cut in two."""

    async def test() -> None:
        async with running(repository) as app, wire(app) as connection:
            pending = b""
            for (kind, value), join in zip(sequence, joined, strict=False):
                pending += KINDS[kind](value)
                if join:
                    continue
                connection.send(pending[:-cut] if value % 3 == 0 else b"")
                await asyncio.sleep(0)
                connection.send(pending[-cut:] if value % 3 == 0 else pending)
                pending = b""
                await asyncio.sleep(0)
            connection.send(pending)
            for kind, value in sequence:
                answer = await connection.answer()
                assert answer.status == 200
                if kind == "cold":
                    assert answer.json()["name"] == "identity"
                elif kind == "json":
                    assert set(answer.json()["outputs"][0]["data"]) == {value}
                else:
                    assert set(answer.tensor()) == {value}
        assert app.edge.inflight.used == 0

    asyncio.run(test())
