"""State in a file of sqlite's: survives a restart and a crash of the server. Written ahead (WAL), each change is one transaction on disk.

A file of an older schema is brought up to date when it's opened; one that's newer, damaged or somebody else's is refused and left as it is.
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

from server.errors import ConfigError, Unavailable
from server.state.base import MOST_EVENTS, Document, Event

APPLICATION = 0x74696465  # "tide": sqlite's application_id of our files
BUSY = 5.0  # seconds to wait for another process that writes
UPGRADES: tuple[tuple[str, ...], ...] = (
    ("CREATE TABLE documents (room TEXT NOT NULL, key TEXT NOT NULL, document BLOB NOT NULL, PRIMARY KEY (room, key)) WITHOUT ROWID",),
    (
        "CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,"
        " model TEXT NOT NULL, was TEXT NOT NULL, now TEXT NOT NULL, why TEXT NOT NULL)",
    ),
)
"""What makes schema n + 1 of schema n; the file's `user_version` says which it has. Only ever added to."""

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
            if document is None:
                connection.execute("DELETE FROM documents WHERE room = ? AND key = ?", (room, key))
            else:
                values = (room, key, orjson.dumps(dict(document)))
                connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", values)
            return self._log(connection, event)

    def put(self, room: str, key: str, document: Document) -> None:
        with self._changing() as connection:
            connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (room, key, orjson.dumps(dict(document))))

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
        if version > len(UPGRADES):
            raise ConfigError(
                f"state file {self._path}: it has schema {version}, of a newer tidegate; this one knows up to {len(UPGRADES)}: "
                f"run the newer one, or name another file"
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
            if _pragma(connection, "user_version") >= version:
                return
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {version}")

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


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _trouble(error: sqlite3.Error) -> str:
    """What sqlite says, and what to do about it."""
    damaged = "not a database" in str(error) or "malformed" in str(error)
    return f"it's damaged ({error}); {_ADVICE}" if damaged else str(error)
