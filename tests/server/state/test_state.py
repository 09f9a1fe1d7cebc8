"""One suite for every store behind the seam, then what only a file must bear: restarts, older and newer schemas, damage."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from server.errors import ConfigError, NotFound, Superseded, Unavailable
from server.state.base import MOST_TEXT, Event, StateStore, Swap
from server.state.memory import MemoryState
from server.state.redis.store import RedisState
from server.state.sqlite import UPGRADES, SqliteState
from tests.server.state.redis.serving import RedisServer, redis_server

Make: TypeAlias = Callable[..., StateStore]
SET = Event(12.5, "ann", "precision", model="m", was="fp32", now="int8", why="asked for")


@pytest.fixture(scope="module")
def redis_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "memory", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[StateStore] = []

    def build(most_events: int = 100) -> StateStore:
        match request.param:
            case "sqlite":
                made.append(SqliteState(tmp_path / "state.db", most_events))
            case "redis":
                running: RedisServer = request.getfixturevalue("redis_running")
                made.append(RedisState(replace(running.place, prefix=f"t{abs(hash(tmp_path)):x}"), most_events))
            case _:
                made.append(MemoryState(most_events))
        return made[-1]

    yield build
    for store in made:
        store.close()


def test_a_document_can_be_put_without_an_event(make: Make) -> None:
    store = make()
    store.put("trials", "m", {"step": 1})
    store.put("trials", "m", {"step": 2})
    assert store.read("trials") == {"m": {"step": 2}}
    assert not store.events()


def test_documents_are_kept_by_room_and_key(make: Make) -> None:
    store = make()
    assert store.read("precision") == {}
    store.write("precision", "m", {"active": "int8", "deep": {"a": [1, None, "é"]}}, SET)
    store.write("precision", "n", {"active": "fp16"}, SET)
    store.write("admission", "m", {"min_priority": 1}, SET)
    store.write("precision", "n", {"active": "fp32"}, SET)
    assert store.read("precision") == {"m": {"active": "int8", "deep": {"a": [1, None, "é"]}}, "n": {"active": "fp32"}}
    store.write("precision", "m", None, SET)
    store.write("precision", "never there", None, SET)
    assert store.read("precision").keys() == {"n"}
    assert store.read("admission") == {"m": {"min_priority": 1}}


def test_what_was_read_is_not_the_store(make: Make) -> None:
    store, document = make(), {"active": "int8"}
    store.write("precision", "m", document, SET)
    document["active"] = "fp16"
    store.read("precision").clear()
    assert store.read("precision") == {"m": {"active": "int8"}}


def test_every_change_is_an_event(make: Make) -> None:
    store = make()
    kept = [store.write("precision", "m", {}, SET), store.append(SET), store.write("precision", "m", None, SET)]
    assert [event.number for event in kept] == [1, 2, 3]
    assert list(store.events()) == kept
    assert (kept[0].at, kept[0].who, kept[0].what, kept[0].model) == (12.5, "ann", "precision", "m")
    assert (kept[0].was, kept[0].now, kept[0].why) == ("fp32", "int8", "asked for")


def test_events_are_read_on_from_a_number(make: Make) -> None:
    store = make()
    for _ in range(5):
        store.append(SET)
    assert [event.number for event in store.events(after=2)] == [3, 4, 5]
    assert [event.number for event in store.events(after=1, most=2)] == [2, 3]
    assert [list(store.events(after=5)), list(store.events(most=0)), list(store.events(most=-1))] == [[], [], []]


def test_the_oldest_events_go_and_no_number_comes_twice(make: Make) -> None:
    store = make(most_events=3)
    for _ in range(10):
        store.append(SET)
    assert [event.number for event in store.events()] == [8, 9, 10]


def test_a_swap_is_a_write_where_nothing_changed_meanwhile(make: Make) -> None:
    store = make()
    first = store.swap(Swap("canary", "m", None, {"step": 0}), SET)
    second = store.swap(Swap("canary", "m", {"step": 0}, {"step": 1, "share": 0.25}), SET)
    assert (first.number, second.number, store.read("canary")) == (1, 2, {"m": {"step": 1, "share": 0.25}})
    for was in (None, {"step": 0}, {}):
        with pytest.raises(Superseded, match="has changed meanwhile"):
            store.swap(Swap("canary", "m", was, {"step": 2}), SET)
    assert (len(store.events()), store.read("canary")) == (2, {"m": {"step": 1, "share": 0.25}})
    store.swap(Swap("canary", "m", {"share": 0.25, "step": 1}, None), SET)
    assert store.read("canary") == {}
    with pytest.raises(Superseded):
        store.swap(Swap("canary", "m", {"step": 1}, {"step": 2}), SET)


def test_a_tally_adds_up_what_many_count(make: Make) -> None:
    store = make()
    store.begin("x")
    store.begin("other")
    store.count("x", "a", 1, {"k": (1, 2, 3), "l": (1, 0, 0)})
    store.count("x", "b", 1, {"k": (1, 1, 1)})
    store.count("x", "a", 2, {"k": (5, 5, 2**80)})
    revision, counts = store.counted("x")
    assert (revision, counts) == (3, {"k": (7, 8, 2**80 + 4), "l": (1, 0, 0)})
    assert store.counted("x", after=1) == (3, {"k": (7, 8, 2**80 + 4)})
    assert store.counted("x", after=3) == (3, {})
    assert store.counted("other") == (0, {})


def test_what_is_counted_twice_counts_once(make: Make) -> None:
    store = make()
    store.begin("x")
    for number in (1, 1, 2, 1, 2):
        store.count("x", "a", number, {"k": (1, 1, 1)})
    assert store.counted("x") == (2, {"k": (2, 2, 2)})


def test_a_tally_that_ended_or_never_began(make: Make) -> None:
    store = make()
    store.begin("x")
    store.count("x", "a", 1, {"k": (1, 1, 1)})
    store.begin("x")
    assert store.counted("x") == (0, {})
    store.count("x", "a", 1, {"k": (1, 1, 1)})
    assert store.counted("x") == (1, {"k": (1, 1, 1)})
    for _ in range(2):
        store.end("x")
    for use in (lambda: store.counted("x"), lambda: store.count("x", "a", 2, {})):
        with pytest.raises(NotFound, match="nothing is counted under 'x'"):
            use()


def test_many_threads_count(make: Make) -> None:
    store = make()
    store.begin("x")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: store.count("x", str(number % 4), number // 4 + 1, {"k": (1, 10, 100)}), range(40)))
    count, total, squares = store.counted("x").counts["k"]
    assert (total, squares) == (10 * count, 100 * count)
    assert 4 <= count <= 40  # a number that overtook a lower one of its source's is the last


def test_texts_are_bounded(make: Make) -> None:
    kept = make().append(Event(0.0, "w" * 5000, "x" * 5000, why="y" * 5000))
    assert {len(kept.who), len(kept.what), len(kept.why)} == {MOST_TEXT}


def test_many_threads(make: Make) -> None:
    store = make()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: store.write("room", str(number), {"n": number}, SET), range(40)))
    assert store.read("room") == {str(number): {"n": number} for number in range(40)}
    assert [event.number for event in store.events()] == list(range(1, 41))


def test_closed_is_closed(make: Make) -> None:
    store = make()
    store.close()
    store.close()
    uses: tuple[Callable[[], object], ...] = (
        lambda: store.read("room"),
        lambda: store.append(SET),
        lambda: store.write("room", "k", {}, SET),
        lambda: store.swap(Swap("room", "k", None, {}), SET),
        lambda: store.begin("x"),
        lambda: store.count("x", "a", 1, {}),
        lambda: store.counted("x"),
        lambda: store.end("x"),
        store.events,
    )
    for use in uses:
        with pytest.raises(Unavailable):
            use()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_it_survives_a_kill(path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from server.state.base import Event; from server.state.sqlite import SqliteState\n"
        "store = SqliteState(Path(sys.argv[1]))\n"
        "store.write('precision', 'm', {'active': 'int8'}, Event(1.0, 'ann', 'precision'))\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60).returncode == -signal.SIGKILL
    with closing(SqliteState(path)) as store:
        assert store.read("precision") == {"m": {"active": "int8"}}
        assert [event.who for event in store.events()] == ["ann"]


def test_numbers_go_on_after_a_restart(path: Path) -> None:
    for number in (1, 2):
        with closing(SqliteState(path, most_events=1)) as store:
            assert store.append(SET).number == number


def test_only_the_owner_reads_it(path: Path) -> None:
    with closing(SqliteState(path)) as store:
        store.append(SET)
        files = list(path.parent.glob("state.db*"))
        assert len(files) > 1  # the write-ahead log too
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("version", range(len(UPGRADES)))
def test_an_older_schema_is_brought_up_to_date(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for number, statements in enumerate(UPGRADES[:version], 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {0x74696465}")
        if version:
            connection.execute("INSERT INTO documents VALUES ('precision', 'm', '{\"active\":\"int8\"}')")
        connection.commit()
    for _ in range(2):
        with closing(SqliteState(path)) as store:
            assert store.read("precision") == ({"m": {"active": "int8"}} if version else {})
            store.append(SET)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(UPGRADES),)


def refused(path: Path, said: str) -> None:
    """The file is refused with these words and not touched."""
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said):
        SqliteState(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    SqliteState(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {(98 << 16) + 99}")
    refused(
        path,
        rf"schema 99, of a newer tidegate, which can be used by one that knows 98 or more; this one knows up to {len(UPGRADES)}: run the",
    )


def test_a_newer_schema_that_only_has_more_is_used_and_left_as_it_is(path: Path) -> None:
    """A server that was rolled back goes on with what the newer one left, and the newer one with that."""
    with closing(SqliteState(path)) as store:
        store.write("precision", "m", {"active": "int8"}, SET)
    newer = len(UPGRADES) + 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE novelties (a)")
        connection.execute("INSERT INTO novelties VALUES (1)")
        connection.execute(f"PRAGMA user_version = {(len(UPGRADES) << 16) + newer}")
        connection.commit()
    with closing(SqliteState(path)) as store:
        assert store.read("precision") == {"m": {"active": "int8"}}
        store.write("precision", "m", {"active": "fp16"}, SET)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == ((len(UPGRADES) << 16) + newer,)
        assert connection.execute("SELECT a FROM novelties").fetchone() == (1,)


def test_another_program_s_database_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    refused(path, "another program's database")


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 100)
    refused(path, "damaged.*move it away to begin anew")


def test_a_damaged_file_is_refused(path: Path) -> None:
    with closing(SqliteState(path)) as store:
        for number in range(200):
            store.write("room", str(number), {"text": "x" * 200}, SET)
    whole = bytearray(path.read_bytes())
    whole[4096 : len(whole) // 2] = bytes((7,)) * (len(whole) // 2 - 4096)
    path.write_bytes(whole)
    refused(path, "damaged.*move it away to begin anew")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be opened: .*No such file.* its folder must exist"):
        SqliteState(tmp_path / "nowhere" / "state.db")
    with pytest.raises(ConfigError, match="Is a directory"):
        SqliteState(tmp_path)


def test_a_store_that_is_locked_says_so_and_changes_nothing(path: Path) -> None:
    with closing(SqliteState(path, busy=0.01)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            store.write("room", "k", {}, SET)
        assert store.read("room") == {}
        other.execute("ROLLBACK")
        assert store.write("room", "k", {}, SET).number == 1


def test_two_servers_may_open_one_file(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: SqliteState(path), range(8)))
    numbers = [store.append(SET).number for store in stores]
    assert numbers == list(range(1, 9))
    for store in stores:
        store.close()


def test_a_full_disk_says_so_and_changes_nothing(path: Path) -> None:
    with closing(SqliteState(path)) as store:
        store.write("room", "k", {"a": 1}, SET)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(Unavailable, match="full"):
            store.write("room", "k", {"a": "x" * 100_000}, SET)
        assert store.read("room") == {"k": {"a": 1}}
        assert len(store.events()) == 1
