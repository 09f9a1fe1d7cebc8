"""Where our data in a Redis is asked for something: by name of script, under the mark that says whose the data is and of which schema.

The mark also has a random part, made when a Redis was found empty: one that is another than before says that everything was lost meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn
from uuid import uuid4

import orjson
from redis.commands.core import Script

from server.errors import ConfigError, NotFound, Superseded, Unavailable
from server.state.redis import scripts
from server.state.redis.link import Link, Place

APPLICATION = "tidegate"
SCHEMA = 1
LEAST = 1
"""The oldest schema whose server can use data of this one, as for a state file."""
_SCRIPTS: Mapping[str, str] = MappingProxyType(
    {
        "change": scripts.CHANGE,
        "begin": scripts.BEGIN,
        "end": scripts.END,
        "count": scripts.COUNT,
        "counted": scripts.COUNTED,
        "pulse": scripts.PULSE,
        "leave": scripts.LEAVE,
    }
)


class Names:
    """Of all our keys, and of the channel."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.mark, self.events, self.number = self.of("state"), self.of("events"), self.of("number")
        self.revision, self.lease, self.tokens = self.of("revision"), self.of("lease"), self.of("tokens")
        self.channel = self.of("changes")

    def of(self, *parts: str) -> str:
        """A key's name."""
        return ":".join((self._prefix, *parts))

    def room(self, room: str) -> str:
        """The hash of a room's documents by key."""
        return self.of("room", room)

    def tally(self, tally: str) -> tuple[str, str, str]:
        """What is known of a tally, its cells, and which changed when."""
        return self.of("tally", tally), self.of("cells", tally), self.of("cell-changes", tally)


class Desk:
    """`mark` is that of the data as last seen, empty before that. Raises ConfigError for data that can't be used, where it's reached."""

    def __init__(self, place: Place) -> None:
        self.link = Link(place)
        self.names = Names(place.prefix)
        self.mark = b""
        self._scripts: dict[str, Script] = {name: self.link.client.register_script(text) for name, text in _SCRIPTS.items()}
        self._first = self.link.client.register_script(scripts.MARK)
        try:
            self.look()
        except Unavailable:  # to be tried again by each call: a server goes on, and up, without its fleet
            pass
        except ConfigError:
            self.link.close()
            raise

    def look(self) -> bytes:
        """Find the mark, or put one where there's nothing of ours. Raises ConfigError, Unavailable."""
        names = self.names
        new = orjson.dumps({"application": APPLICATION, "schema": SCHEMA, "least": LEAST, "epoch": uuid4().hex})
        with self.link.using():
            answer: Any = self._first([names.mark, names.events, names.number, names.revision, names.lease, names.tokens], [new])
        word, found = answer
        if word != b"OK":
            raise ConfigError(self._foreign(found))
        self.mark = self._checked(found)
        return self.mark

    def ask(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        """What a script answers after its OK. Raises Unavailable, NotFound for a tally that isn't there, Superseded."""
        for _ in range(2):
            with self.link.using():
                answer: list[Any] = self._scripts[script]([self.names.mark, *keys], [self.mark, *arguments])
            word, rest = answer[0], answer[1:]
            if word == b"OK":
                return rest
            if word != b"EPOCH":
                self._refuse(word, rest, keys)
            try:
                self.look()
            except ConfigError as error:
                raise Unavailable(str(error)) from error
        raise Unavailable(f"state {self.link.place}: it's being emptied while it's used")

    def foreign(self, key: str, what: str = "") -> Unavailable:
        """That something else than ours is under a name."""
        return Unavailable(self._foreign(key.encode(), what))

    def close(self) -> None:
        """Twice is once."""
        self.link.close()

    def _refuse(self, word: bytes, rest: list[Any], keys: Sequence[str]) -> NoReturn:
        match word:
            case b"ABSENT":
                raise NotFound(f"nothing is counted under {keys[0].rpartition(':')[2]!r}")
            case b"CHANGED":
                raise Superseded("the document has changed meanwhile")
            case b"FENCED":
                raise Superseded("another server has taken the lease meanwhile")
        raise Unavailable(self._foreign(rest[0]))

    def _foreign(self, key: bytes, what: str = "") -> str:
        found = f" ({what[:200]})" if what else ""
        return (
            f"state {self.link.place}: {key.decode(errors='replace')!r} isn't tidegate's{found}: choose another redis.prefix or database, "
            f"or remove it; nothing was changed"
        )

    def _checked(self, found: bytes) -> bytes:
        try:
            mark = orjson.loads(found)
        except orjson.JSONDecodeError:
            mark = None
        match mark:
            case {"application": "tidegate", "schema": int(schema), "least": int(least), "epoch": str()}:
                if least > SCHEMA:
                    raise ConfigError(
                        f"state {self.link.place}: it has schema {schema}, of a newer tidegate, which can be used by one that knows "
                        f"{least} or more; this one knows up to {SCHEMA}: run the newer one, or choose another redis.prefix"
                    )
                return found
        raise ConfigError(self._foreign(self.names.mark.encode(), found[:200].decode(errors="replace")))
