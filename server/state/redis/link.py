"""The way to a Redis: address, user, password and TLS from the settings, bounded waits, and no attempt before the last failure is over.

A password is read from a file or a variable, and stands in no message. Nothing is tried twice here: who calls knows what may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import random
from threading import Lock
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from server.config import Settings
from server.errors import ConfigError, Unavailable

PORT = 6379
FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between attempts, doubled from the first to the longest: a fleet's servers come back one after the other."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Redis is and who asks there. `prefix` is what the names of all keys begin with."""

    host: str
    port: int = PORT
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    prefix: str = "tidegate"
    timeout: float = 1.0

    def __str__(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}/{self.db}"

    @classmethod
    def from_settings(cls, settings: Settings) -> Place:
        """As `state: redis://…` and `redis: {…}` say. Raises ConfigError."""
        url, more = urlsplit(str(settings.state)), settings.redis
        db, port = url.path.strip("/"), _port(url)
        if url.password is not None:
            raise ConfigError("state: no password in the address, which shows in logs: redis.password_file or TIDEGATE_REDIS_PASSWORD")
        if not url.hostname or port is None or not (db.isdecimal() or not db) or url.query or url.fragment:
            raise ConfigError("state: expected redis://[user@]host[:port][/database], rediss:// with TLS; the rest belongs into redis: {…}")
        tls = url.scheme == "rediss"
        if not tls and (more.ca_certs or more.certfile):
            raise ConfigError("redis: ca_certs and certfile are for TLS: state: rediss://…")
        user = unquote(url.username) if url.username else None
        return cls(
            *(url.hostname, port, int(db or 0), user, _password(settings), tls),
            *(more.ca_certs, more.certfile, more.keyfile, more.prefix, more.timeout),
        )

    def connection(self) -> redis.Redis:
        """A client, not connected yet."""
        files = {"ca_certs": self.ca_certs, "certfile": self.certfile, "keyfile": self.keyfile}
        tls = {"ssl": True, **{f"ssl_{name}": str(file) for name, file in files.items() if file is not None}} if self.tls else {}
        ways: dict[str, Any] = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
            **tls,
        }
        return redis.Redis(self.host, self.port, self.db, self.password, username=self.user, **ways)


class Link:
    """One client of a Redis. Any thread may use it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.client = place.connection()
        self._lock = Lock()
        self._failures = 0
        self._trouble = ""
        self._not_before = 0.0
        self._closed = False

    @contextmanager
    def using(self) -> Iterator[redis.Redis]:
        """The client, where it's time for an attempt. Raises Unavailable in the place of what a Redis or the way to it say."""
        self._check()
        try:
            yield self.client
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            trouble = _trouble(error)
            raise Unavailable(f"state {self.place}: {trouble}", self._failed(trouble)) from error
        except redis.RedisError as error:
            raise Unavailable(f"state {self.place}: {_trouble(error)}") from error
        self._failures = 0

    def close(self) -> None:
        """Twice is once."""
        self._closed = True
        self.client.close()

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the state is closed: the server is going down")
        if (wait := self._not_before - monotonic()) > 0:
            raise Unavailable(f"state {self.place}: {self._trouble}; it is tried again in {wait:.2f} s", wait)

    def _failed(self, trouble: str) -> float:
        """Note that it can't be reached, and why; seconds until it's tried again."""
        with self._lock:
            self._failures += 1
            self._trouble = trouble
            wait: float = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._failures - 1, 10)) * (0.75 + random() / 4)
            self._not_before = monotonic() + wait
        return wait


def _port(url: SplitResult) -> int | None:
    """None for one that isn't any."""
    try:
        return PORT if url.port is None else url.port
    except ValueError:
        return None


def _password(settings: Settings) -> str | None:
    file, given = settings.redis.password_file, settings.redis.password
    if file is None:
        return given
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"redis.password_file: {file} can't be read: {error.strerror}") from error


def _trouble(error: Exception) -> str:
    """What went wrong, and what to do about what isn't the network's doing."""
    if isinstance(error, redis.AuthenticationError):
        return f"it doesn't know this user or password ({error}): see state: redis://USER@… and redis.password_file"
    if isinstance(error, redis.exceptions.NoPermissionError):
        return f"this user may not do that ({error}): docs/state.md has the rights that are needed"
    if "WRONGTYPE" in str(error):
        return f"another program's data is where ours should be ({error}): choose another redis.prefix or database"
    return str(error) or type(error).__name__
