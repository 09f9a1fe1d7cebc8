"""What a Redis can do to a server: foreign and damaged data, passwords, rights, TLS, emptied, killed, hung. Others' is not touched."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import monotonic

import orjson
import pytest
import trustme

from server.config import load_settings
from server.errors import ConfigError, NotFound, Superseded, Unavailable
from server.state.base import Event, Fence, Swap
from server.state.changes import events_of
from server.state.redis.link import LONGEST_WAIT, Place
from server.state.redis.store import RedisState
from tests.server.state.redis.serving import RedisServer, redis_server

SET = Event(12.5, "ann", "canary", model="m", now="5 %")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


def all_of(server: RedisServer) -> dict[bytes, bytes | None]:
    """Everything that is in it."""
    client = server.client()
    return {key: client.dump(key) for key in client.keys("*")}  # type: ignore[misc]


@pytest.mark.parametrize("mark", [b"theirs", b'{"application":"other"}', b'{"application":"tidegate","schema":"1"}', b"\xff"])
def test_what_is_not_ours_is_refused_and_not_touched(server: RedisServer, mark: bytes) -> None:
    server.client().set("tidegate:state", mark)
    before = all_of(server)
    with pytest.raises(ConfigError, match=r"'tidegate:state' isn't tidegate's.*choose another redis.prefix or database"):
        RedisState(server.place)
    assert all_of(server) == before
    with closing(RedisState(replace(server.place, prefix="other"))) as store:
        store.append(SET)


def test_data_of_ours_without_its_mark_is_refused(server: RedisServer) -> None:
    server.client().lpush("tidegate:events", "theirs")
    with pytest.raises(ConfigError, match="'tidegate:events' isn't tidegate's"):
        RedisState(server.place)


@pytest.mark.parametrize(("schema", "least", "taken"), [(2, 1, True), (9, 9, False)])
def test_a_newer_schema_is_used_where_it_only_has_more(server: RedisServer, schema: int, least: int, taken: bool) -> None:
    mark = orjson.dumps({"application": "tidegate", "schema": schema, "least": least, "epoch": "e"})
    server.client().set("tidegate:state", mark)
    if taken:
        with closing(RedisState(server.place)) as store:
            store.write("canary", "m", {"step": 1}, SET)
            assert server.client().get("tidegate:state") == mark
    else:
        with pytest.raises(ConfigError, match="schema 9, of a newer tidegate, which can be used by one that knows 9 or more"):
            RedisState(server.place)


@pytest.mark.parametrize("name", ["room:canary", "events", "number", "revision"])
def test_what_another_program_puts_there_later_is_refused_and_nothing_changes(server: RedisServer, name: str) -> None:
    with closing(RedisState(server.place)) as store:
        server.client().sadd(f"tidegate:{name}", "theirs")
        before = all_of(server)
        with pytest.raises(Unavailable, match=rf"'tidegate:{name}' isn't tidegate's"):
            store.write("canary", "m", {"step": 1}, SET)
        assert all_of(server) == before


def test_values_that_are_none_of_ours_are_refused(server: RedisServer) -> None:
    with closing(RedisState(server.place)) as store:
        store.begin("x")
        server.client().hset("tidegate:room:canary", "m", "not JSON")
        server.client().xadd("tidegate:events", {"event": '{"who": 3}'}, id="7-0")
        server.client().hset("tidegate:cells:x", "k", "1 2")
        server.client().zadd("tidegate:cell-changes:x", {"k": 1})
        before = all_of(server)
        uses: tuple[Callable[[], object], ...] = (
            lambda: store.read("canary"),
            store.events,
            lambda: store.counted("x"),
            lambda: store.count("x", "a", 1, {"k": (1, 1, 1)}),
        )
        for use in uses:
            with pytest.raises(Unavailable, match="isn't tidegate's"):
                use()
        assert all_of(server) == before


def test_a_leader_that_was_replaced_changes_nothing(server: RedisServer) -> None:
    with closing(RedisState(server.place)) as store:
        store.write("canary", "m", {"step": 0}, SET)
        server.client().hset("tidegate:lease", mapping={"holder": "a", "token": 3, "beat": 9})
        step = Swap("canary", "m", {"step": 0}, {"step": 1})
        for fence in (Fence("tidegate:lease", "a", 2), Fence("tidegate:lease", "b", 3)):
            with pytest.raises(Superseded, match="another server has taken the lease"):
                store.swap(step, SET, fence)
        assert store.read("canary") == {"m": {"step": 0}}
        store.swap(step, SET, Fence("tidegate:lease", "a", 3))
        assert store.read("canary") == {"m": {"step": 1}}


def test_emptied_is_begun_anew_and_what_was_is_over(server: RedisServer) -> None:
    with closing(RedisState(server.place)) as store:
        store.write("canary", "m", {"step": 0}, SET)
        store.begin("x")
        server.client().flushall()
        assert store.read("canary") == {}
        with pytest.raises(Superseded):
            store.swap(Swap("canary", "m", {"step": 0}, {"step": 1}), SET)
        for use in (lambda: store.count("x", "a", 1, {"k": (1, 1, 1)}), lambda: store.counted("x")):
            with pytest.raises(NotFound):
                use()
        assert store.append(SET).number == 1


@pytest.mark.parametrize("forgets", [False, True])
def test_killed_and_started_again(tmp_path: Path, forgets: bool) -> None:
    with redis_server(tmp_path, forgets=forgets) as server, closing(RedisState(server.place)) as store:
        store.write("canary", "m", {"step": 0}, SET)
        server.kill()
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                store.append(SET)
            assert str(server.port) in str(caught.value)
            assert 0 < caught.value.retry_after <= LONGEST_WAIT
        server.start()
        assert eventually(lambda: store.read("canary")) == ({} if forgets else {"m": {"step": 0}})
        assert store.append(SET).number == (1 if forgets else 2)


def test_a_server_comes_up_before_its_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        server.kill()
        with closing(RedisState(server.place)) as store:
            with pytest.raises(Unavailable):
                store.read("canary")
            server.start()
            assert eventually(lambda: store.append(SET).number) == 1


def test_one_that_hangs_is_waited_for_no_longer_than_said(server: RedisServer) -> None:
    with closing(RedisState(replace(server.place, timeout=0.2))) as store:
        process = server._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            began = monotonic()
            with pytest.raises(Unavailable, match=r"[tT]imed? ?out"):
                store.append(SET)
            with pytest.raises(Unavailable, match="it is tried again in"):
                store.append(SET)
            assert monotonic() - began < 5
        finally:
            os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: store.append(SET))


RIGHTS = ("on", ">s3cret", "~tidegate:*", "&tidegate:*", "+@read", "+@write", "+@scripting", "+@connection", "+publish", "+subscribe")


def test_a_user_with_few_rights_and_a_password_from_a_file(tmp_path: Path) -> None:
    """The rights that docs/state.md names are enough; a wrong password, and another prefix, are told without the password."""
    with redis_server(tmp_path, "--user", "tide", *RIGHTS, "--user", "default", "off") as server:
        secret = tmp_path / "secret"
        secret.write_text("s3cret\n")
        state = f"redis://tide@127.0.0.1:{server.port}"
        settings = load_settings(None, {"repository": tmp_path, "state": state, "redis_password_file": secret}, {})
        place = Place.from_settings(settings)
        assert "s3cret" not in f"{place} {place!r} {settings!r}"
        with closing(RedisState(place)) as store:
            store.write("canary", "m", {"step": 0}, SET)
            store.begin("x")
            store.count("x", "a", 1, {"k": (1, 1, 1)})
            assert (store.read("canary"), store.counted("x").revision, len(store.events())) == ({"m": {"step": 0}}, 1, 1)
        for wrong, said in (
            (replace(place, password="wr0ng"), "doesn't know this user or password"),
            (replace(place, prefix="x"), "may not"),
        ):
            with closing(RedisState(wrong)) as store, pytest.raises(Unavailable, match=said) as caught:
                store.append(SET)
            assert "wr0ng" not in str(caught.value)
            assert "s3cret" not in str(caught.value)


def test_tls_with_certificates_of_both(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    files = {name: tmp_path / name for name in ("ca", "server", "client", "stranger")}
    authority.cert_pem.write_to_path(files["ca"])
    stranger.cert_pem.write_to_path(files["stranger"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["server"])
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(files["client"])
    with redis_server(tmp_path) as plain:
        port, place = plain.port, plain.place
    server_files = ("--tls-cert-file", str(files["server"]), "--tls-key-file", str(files["server"]), "--tls-ca-cert-file", str(files["ca"]))
    with redis_server(tmp_path, "--tls-port", str(port), *server_files) as server:
        place = replace(place, port=port, tls=True, ca_certs=files["ca"], certfile=files["client"], keyfile=files["client"])
        assert server.port != port
        with closing(RedisState(place)) as store:
            assert store.append(SET).number == 1
        with closing(RedisState(replace(place, ca_certs=files["stranger"]))) as store, pytest.raises(Unavailable, match=r"(?i)certificate"):
            store.append(SET)


@pytest.mark.parametrize(
    ("state", "more", "told"),
    [
        ("redis://ann:s3cret@h", {}, "no password in the address"),
        ("redis://h/notadb", {}, r"expected redis://\[user@\]host"),
        ("redis://", {}, r"expected redis://\[user@\]host"),
        ("redis://h?prefix=x", {}, r"expected redis://\[user@\]host"),
        ("redis://h:port", {}, r"expected redis://\[user@\]host"),
        ("postgres://h", {}, r"state: expected a file, redis://… or rediss://…, got postgres://…"),
        ("redis://h", {"redis_ca_certs": __file__}, "redis: ca_certs and certfile are for TLS"),
        ("redis://h", {"redis_prefix": "no spaces"}, "redis_prefix|redis-prefix"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, state: str, more: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        events_of(load_settings(None, {"repository": tmp_path, "state": state, **more}, {}))
    assert "s3cret" not in str(caught.value)


def eventually(use: Callable[[], object]) -> object:
    """What it gives, once it does."""
    deadline = monotonic() + 20
    while True:
        try:
            return use()
        except Unavailable:
            assert monotonic() < deadline, "never reached again"
