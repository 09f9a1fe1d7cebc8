"""What outlives a restart, in one SQLite file: alerts, what each group was told, notifications not yet delivered, and actions taken.

One monitor at a time has the file. A tick's changes are written in one transaction, so that a notification is queued exactly when its
group is recorded as told; it is sent at least once, always with the same idempotency key.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monitor.alerts import Alert, Level, State
from server.errors import ConfigError

VERSION = 1
MAX_QUEUED = 1000
"""Undelivered notifications that are kept for one notifier; the oldest make room."""

_TABLES = """
CREATE TABLE alerts (rule TEXT, fingerprint TEXT, body TEXT, PRIMARY KEY (rule, fingerprint));
CREATE TABLE groups (name TEXT PRIMARY KEY, body TEXT);
CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, notifier TEXT, grp TEXT, kind TEXT, key TEXT, body TEXT, created REAL);
CREATE INDEX outbox_notifier ON outbox (notifier, id);
CREATE TABLE actions (at REAL, action TEXT, alert TEXT, outcome TEXT);
"""


@dataclass(frozen=True, slots=True)
class Queued:
    """A notification that waits for its notifier. `kind` is change or repeat; `key` the idempotency key."""

    id: int
    notifier: str
    group: str
    kind: str
    key: str
    body: dict[str, Any]
    created: float


class Store:
    """The file at `path`. Raises ConfigError where it can't be used."""

    def __init__(self, path: Path | str) -> None:
        try:
            self._db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("BEGIN IMMEDIATE")
            self._prepare(path)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            hint = "another monitor uses it" if "locked" in str(error) else str(error)
            raise ConfigError(f"{path}: the state file can't be used: {hint}. Name another with `state:`") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: is no state file of this monitor ({error}). Move it away, or name another with `state:`") from error

    def _prepare(self, path: Path | str) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={VERSION}")
        elif version != VERSION:
            raise ConfigError(f"{path}: was written by another version of the monitor (format {version}, expected {VERSION}). Move it away")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what the block writes."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def alerts(self) -> list[Alert]:
        """Those that were pending or firing."""
        return [alert_from(json.loads(body)) for (body,) in self._db.execute("SELECT body FROM alerts ORDER BY rowid")]

    def save_alert(self, alert: Alert) -> None:
        """Keep a pending or firing alert, forget one that is over."""
        if alert.state in (State.PENDING, State.FIRING):
            row = (alert.rule, alert.fingerprint, json.dumps(asdict(alert)))
            self._db.execute("INSERT OR REPLACE INTO alerts VALUES (?, ?, ?)", row)
        else:
            self._db.execute("DELETE FROM alerts WHERE rule = ? AND fingerprint = ?", (alert.rule, alert.fingerprint))

    def keep_only(self, alerts: Iterable[Alert]) -> None:
        """Forget the alerts that aren't among these: their rules are gone."""
        self._db.execute("DELETE FROM alerts")
        for alert in alerts:
            self.save_alert(alert)

    def groups(self) -> dict[str, dict[str, Any]]:
        """What each group of alerts was last told, by the group's name."""
        return {name: json.loads(body) for name, body in self._db.execute("SELECT name, body FROM groups")}

    def save_group(self, name: str, body: dict[str, Any] | None) -> None:
        """None forgets the group."""
        if body is None:
            self._db.execute("DELETE FROM groups WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO groups VALUES (?, ?)", (name, json.dumps(body)))

    def enqueue(self, queued: Queued) -> int:
        """Queue a notification; its id is given here. A repeat takes the place of an undelivered repeat of its group. Returns how many
        of the oldest were dropped for want of room."""
        if queued.kind == "repeat":
            where = (queued.notifier, queued.group)
            self._db.execute("DELETE FROM outbox WHERE notifier = ? AND grp = ? AND kind = 'repeat'", where)
        row = (queued.notifier, queued.group, queued.kind, queued.key, json.dumps(queued.body), queued.created)
        self._db.execute("INSERT INTO outbox (notifier, grp, kind, key, body, created) VALUES (?, ?, ?, ?, ?, ?)", row)
        surplus = max(0, self.queued(queued.notifier) - MAX_QUEUED)
        oldest = "SELECT id FROM outbox WHERE notifier = ? ORDER BY id LIMIT ?"
        self._db.execute(f"DELETE FROM outbox WHERE id IN ({oldest})", (queued.notifier, surplus))
        return surplus

    def next(self, notifier: str) -> Queued | None:
        """The oldest undelivered notification of a notifier."""
        columns = "id, notifier, grp, kind, key, body, created"
        row = self._db.execute(f"SELECT {columns} FROM outbox WHERE notifier = ? ORDER BY id LIMIT 1", (notifier,)).fetchone()
        if row is None:
            return None
        number, name, group, kind, key, body, created = row
        return Queued(number, name, group, kind, key, json.loads(body), created)

    def delivered(self, id: int) -> None:
        """It needn't be sent again."""
        self._db.execute("DELETE FROM outbox WHERE id = ?", (id,))

    def queued(self, notifier: str) -> int:
        """How many notifications wait for a notifier."""
        return int(self._db.execute("SELECT count(*) FROM outbox WHERE notifier = ?", (notifier,)).fetchone()[0])

    def audit(self, at: float, action: str, alert: str, outcome: str) -> None:
        """Record what was done, or why not."""
        self._db.execute("INSERT INTO actions VALUES (?, ?, ?, ?)", (at, action, alert, outcome))

    def actions_since(self, at: float, action: str) -> int:
        """How often an action was taken since."""
        query = "SELECT count(*) FROM actions WHERE at > ? AND action = ? AND outcome NOT LIKE 'held back%'"
        return int(self._db.execute(query, (at, action)).fetchone()[0])

    def audited(self) -> list[tuple[float, str, str, str]]:
        """Every action: when, which, for which alert, and what came of it."""
        return list(self._db.execute("SELECT at, action, alert, outcome FROM actions ORDER BY at"))


def alert_from(body: dict[str, Any]) -> Alert:
    """An alert from its JSON form."""
    labels = tuple((name, value) for name, value in body["labels"])
    return Alert(**{**body, "labels": labels, "level": Level(body["level"]), "state": State(body["state"])})
