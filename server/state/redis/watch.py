"""Hears of what other servers change in a Redis, keeps the lease, and knows whether the Redis is there. In a thread of its own.

News come by the Redis's channel, at once; and it's asked every BEAT whether anything changed, since a channel may lose them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event as Flag
from threading import Thread
from time import monotonic
from uuid import uuid4

import redis

from server.config import Settings
from server.errors import ConfigError, Unavailable
from server.state.base import Fence
from server.state.news import News
from server.state.redis.desk import Desk
from server.state.redis.lease import Held, Lease
from server.state.redis.link import Place

BEAT = 0.25
"""Seconds between questions."""
LOST_AFTER = 1.0
"""Seconds without an answer, after which others' decisions aren't heard any more."""


class Watch:
    """As Watching says."""

    def __init__(self, place: Place, on_news: Callable[[News], None], beat: float = BEAT) -> None:
        """Raises ConfigError for data that can't be used."""
        self.source = uuid4().hex
        self._on_news = on_news
        self._beat = beat
        self._desk = Desk(place)
        self._lease = Lease(self.source, self._desk.names.lease)
        self._mark, self._revision, self._number = self._desk.mark, -1, 0
        self._heard = monotonic()
        self._told = (False, False)
        self._why = ""
        self._channel: redis.client.PubSub | None = None
        self._ended = Flag()
        self._thread = Thread(target=self._work, name="fleet", daemon=True)

    @property
    def reachable(self) -> bool:
        """Whether the Redis answered lately."""
        return bool(self._mark) and monotonic() - self._heard < LOST_AFTER

    @property
    def leads(self) -> bool:
        """Whether this server is the one that acts."""
        return self._lease.leads(monotonic())

    @property
    def fence(self) -> Fence | None:
        """What its acts are fenced by."""
        return self._lease.fence(monotonic())

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(Unavailable):
            self._desk.ask("leave", (self._desk.names.lease,), (self.source,))
        self._desk.close()

    def _work(self) -> None:
        while not self._ended.is_set():
            began = monotonic()
            changed, emptied = self._ask(began)
            now = (self.reachable, self.leads)
            if changed or emptied or now != self._told:
                self._told = now
                self._on_news(News(*now, emptied, self._number, self._why))
            self._wait(began + self._beat)
        if self._channel is not None:
            with suppress(redis.RedisError, OSError):
                self._channel.close()

    def _ask(self, began: float) -> tuple[bool, bool]:
        """Renew or try the lease: whether documents changed, and whether something was lost."""
        names, lease = self._desk.names, self._lease
        said = (self.source, lease.seen.token, lease.seen.beat, int(lease.may_take(began)))
        try:
            holder, token, beat, revision, number = self._desk.ask("pulse", (names.lease, names.tokens, names.revision, names.number), said)
        except (Unavailable, ConfigError) as error:
            self._why = str(error)
            return False, False
        self._heard, self._why = monotonic(), ""
        lease.read(Held(holder.decode(), int(token), int(beat)), began, self._heard)
        mark, last = self._mark, self._revision
        self._mark, self._revision, self._number = self._desk.mark, int(revision), int(number)
        return self._revision != last, bool(mark) and (mark != self._mark or self._revision < last)

    def _wait(self, until: float) -> None:
        """Until it's time to ask again, or there are news."""
        left = until - monotonic()
        try:
            if self._channel is None and self.reachable:
                channel: redis.client.PubSub = self._desk.link.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
                channel.subscribe(self._desk.names.channel)
                self._channel = channel
            if self._channel is not None and left > 0:
                while (left := until - monotonic()) > 0 and not self._ended.is_set() and self._channel.get_message(timeout=left) is None:
                    pass
                return
        except (redis.RedisError, OSError):
            self._channel = None
        self._ended.wait(max(0.0, until - monotonic()))


def watch_redis(settings: Settings, on_news: Callable[[News], None]) -> Watch:
    """A watch of the Redis that the settings name. Raises ConfigError."""
    return Watch(Place.from_settings(settings), on_news)
