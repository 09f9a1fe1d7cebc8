"""State in a file of sqlite's: survives a restart and a crash of the server. Written ahead (WAL), each change is one transaction on disk.

A file of an older schema is brought up to date when it's opened. One that's newer is used where its schema only has more than ours, so that
a server can be rolled back; else it's refused and left as it is, like one that's damaged or somebody else's.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from server.errors import ConfigError, NotFound, Superseded, Unavailable
from server.state.base import MOST_EVENTS, Counted, Counts, Document, Event, Fence, Swap

APPLICATION = 0x74696465  # "tide": sqlite's application_id of our files
BUSY = 5.0  # seconds to wait for another process that writes
UPGRADES: tuple[tuple[str, ...], ...] = (
    ("CREATE TABLE documents (room TEXT NOT NULL, key TEXT NOT NULL, document BLOB NOT NULL, PRIMARY KEY (room, key)) WITHOUT ROWID",),
    (
        "CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,"
        " model TEXT NOT NULL, was TEXT NOT NULL, now TEXT NOT NULL, why TEXT NOT NULL)",
    ),
    (
        "CREATE TABLE tallies (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE sources (tally TEXT NOT NULL, source TEXT NOT NULL, number INTEGER NOT NULL,"
        " PRIMARY KEY (tally, source)) WITHOUT ROWID",
        "CREATE TABLE counts (tally TEXT NOT NULL, cell TEXT NOT NULL, n INTEGER NOT NULL, total INTEGER NOT NULL, squares TEXT NOT NULL,"
        " revision INTEGER NOT NULL, PRIMARY KEY (tally, cell)) WITHOUT ROWID",
        "CREATE INDEX changes ON counts (tally, revision)",
    ),
)
"""What makes schema n + 1 of schema n. Only ever added to."""
LEAST = 0
"""The oldest schema whose server can use a file of the newest: raised by an upgrade that changes what is there, and isn't only added."""
_LEAST_AT = 16  # bits of `user_version`: below them which schema the file has, above them the oldest whose server can use it

_COLUMNS = "at, who, what, model, was, now, why"


class SqliteState:
    """As StateStore says. Raises ConfigError for a file that can't be used: it says why, and what to do."""

    def __init__(self, path: Path, most_events: int = MOST_EVENTS, busy: float = BUSY) -> None:
        self._path = path
        self._most_events = most_events
        self._lock = Lock()
        self._connection = _connect(path, busy)
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise ConfigError(f"state file {path}: {_trouble(error)}") from error
        except ConfigError:
            self._connection.close()
            raise

    def read(self, room: str) -> dict[str, Document]:
        with self._using() as connection:
            rows = connection.execute("SELECT key, document FROM documents WHERE room = ?", (room,)).fetchall()
        return {key: orjson.loads(document) for key, document in rows}

    def write(self, room: str, key: str, document: Document | None, event: Event) -> Event:
        with self._changing() as connection:
            _put(connection, room, key, document)
            return self._log(connection, event)

    def put(self, room: str, key: str, document: Document) -> None:
        with self._changing() as connection:
            _put(connection, room, key, document)

    def swap(self, swap: Swap, event: Event, fence: Fence | None = None) -> Event:
        room, key, was, document = swap
        with self._changing() as connection:
            row = connection.execute("SELECT document FROM documents WHERE room = ? AND key = ?", (room, key)).fetchone()
            if (None if row is None else orjson.loads(row[0])) != was:
                raise Superseded(f"{room} of {key!r} has changed meanwhile")
            _put(connection, room, key, document)
            return self._log(connection, event)

    def begin(self, tally: str) -> None:
        with self._changing() as connection:
            _forget(connection, tally)
            connection.execute("INSERT INTO tallies VALUES (?, 0)", (tally,))

    def count(self, tally: str, source: str, number: int, counts: Counts) -> None:
        with self._changing() as connection:
            revision = _revision(connection, tally) + 1
            last = connection.execute("SELECT number FROM sources WHERE tally = ? AND source = ?", (tally, source)).fetchone()
            if last is not None and number <= last[0]:
                return
            connection.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (tally, source, number))
            connection.execute("UPDATE tallies SET revision = ? WHERE name = ?", (revision, tally))
            for cell, sums in counts.items():
                _add(connection, (tally, cell), sums, revision)

    def counted(self, tally: str, after: int = 0) -> Counted:
        query = "SELECT cell, n, total, squares FROM counts WHERE tally = ? AND revision > ? AND revision <= ?"
        with self._using() as connection:
            revision = _revision(connection, tally)
            rows = connection.execute(query, (tally, after, revision)).fetchall()
        return Counted(revision, {cell: (n, total, int(squares)) for cell, n, total, squares in rows})

    def end(self, tally: str) -> None:
        with self._changing() as connection:
            _forget(connection, tally)

    def append(self, event: Event) -> Event:
        with self._changing() as connection:
            return self._log(connection, event)

    def events(self, after: int = 0, most: int = 1000) -> Sequence[Event]:
        query = f"SELECT {_COLUMNS}, number FROM events WHERE number > ? ORDER BY number LIMIT ?"
        with self._using() as connection:
            return [Event(*row) for row in connection.execute(query, (after, max(0, most)))]

    def close(self) -> None:
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()

    def _log(self, connection: sqlite3.Connection, event: Event) -> Event:
        event = event.cut()
        cursor = connection.execute(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(event)[:-1])
        number = cursor.lastrowid or 0
        connection.execute("DELETE FROM events WHERE number <= ?", (number - self._most_events,))
        return replace(event, number=number)

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("BEGIN")  # one view of the file, while another server may be making it
        application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        connection.execute("COMMIT")
        if application not in (0, APPLICATION) or (application == 0 and tables):
            raise ConfigError(f"state file {self._path}: it's another program's database; name another file")
        version, least = version & ((1 << _LEAST_AT) - 1), version >> _LEAST_AT
        if least > len(UPGRADES):
            raise ConfigError(
                f"state file {self._path}: it has schema {version}, of a newer tidegate, which can be used by one that knows {least} or "
                f"more; this one knows up to {len(UPGRADES)}: run the newer one, or name another file"
            )
        if (found := _pragma(connection, "quick_check(1)")) != "ok":
            raise ConfigError(f"state file {self._path}: it's damaged ({' '.join(found.split())}); {_ADVICE}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for number, statements in enumerate(UPGRADES[version:], version + 1):
            self._upgrade(number, statements)

    def _upgrade(self, version: int, statements: Sequence[str]) -> None:
        """All of a step or nothing. Another server that opens the file at the same time may have made it meanwhile."""
        with self._changing() as connection:
            if _pragma(connection, "user_version") & ((1 << _LEAST_AT) - 1) >= version:
                return
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {version + (LEAST << _LEAST_AT)}")

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise Unavailable(f"state file {self._path}: {_trouble(error)}") from error

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


_ADVICE = "move it away to begin anew with what model.yaml says (sqlite3's .recover may get back what was in it)"


def _connect(path: Path, busy: float) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"state file {path}: can't be opened: {error}; its folder must exist and be writable") from error


def _put(connection: sqlite3.Connection, room: str, key: str, document: Document | None) -> None:
    if document is None:
        connection.execute("DELETE FROM documents WHERE room = ? AND key = ?", (room, key))
    else:
        connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (room, key, orjson.dumps(dict(document))))


def _revision(connection: sqlite3.Connection, tally: str) -> int:
    row = connection.execute("SELECT revision FROM tallies WHERE name = ?", (tally,)).fetchone()
    if row is None:
        raise NotFound(f"nothing is counted under {tally!r}")
    return int(row[0])


def _add(connection: sqlite3.Connection, key: tuple[str, str], sums: tuple[int, int, int], revision: int) -> None:
    """Squares are added up here, and kept as text: they outgrow 64 bits before counts do."""
    row = connection.execute("SELECT n, total, squares FROM counts WHERE tally = ? AND cell = ?", key).fetchone() or (0, 0, 0)
    n, total, squares = (int(before) + more for before, more in zip(row, sums, strict=True))
    connection.execute("INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?)", (*key, n, total, str(squares), revision))


def _forget(connection: sqlite3.Connection, tally: str) -> None:
    for table, column in (("tallies", "name"), ("sources", "tally"), ("counts", "tally")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (tally,))


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _trouble(error: sqlite3.Error) -> str:
    """What sqlite says, and what to do about it."""
    damaged = "not a database" in str(error) or "malformed" in str(error)
    return f"it's damaged ({error}); {_ADVICE}" if damaged else str(error)
