"""What a load says besides a model's name: a configuration laid over the model's own, and files in place of the repository's.

It holds until the model is unloaded: a plain load keeps it, another one takes its place once that serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.control.uploads import Uploads, check_name
from server.errors import Denied, InvalidRequest
from server.repository.configs.reading import Values, override_of

MAX_FILES = 1024


@dataclass(frozen=True, slots=True)
class Wish:
    """`values` are what is laid over, in model.yaml's words, None where the request says nothing; `files` are the model's files."""

    values: Values | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Override:
    """What holds for a model. `place` is the folder that its uploaded files lie in, as in a repository."""

    values: Values = field(default_factory=dict)
    place: Path | None = None


class Overrides:
    """By model's name. `kept` to `close` block on files: call them off the loop."""

    def __init__(self, *, upload: bool) -> None:
        """`upload`: clients may bring files."""
        self._upload = upload
        self._uploads = Uploads()
        self._held: dict[str, Override] = {}

    def wish(self, config: str | None, files: Mapping[str, bytes]) -> Wish:
        """The wish of a request with a `config` and files by name. Raises InvalidRequest, Denied where files aren't taken."""
        if files and not self._upload:
            raise Denied("this server takes no model files from clients: start it with --allow upload")
        for name in files:
            check_name(name)
        if len(files) > MAX_FILES:
            raise InvalidRequest(f"{len(files)} files; at most {MAX_FILES} make a model")
        if files and config is None:
            raise InvalidRequest("the files are a whole model, so its `config` must come with them; {} where there's nothing to say")
        return Wish(override_of(config) if config is not None else None, files)

    def kept(self, name: str, wish: Wish) -> Override:
        """What is to hold for a model, its files written; what holds already where nothing is wished."""
        if wish.values is None:
            return self._held.get(name, Override())
        return Override(wish.values, self._uploads.keep(name, wish.files) if wish.files else None)

    def settle(self, name: str, override: Override, *, serves: bool) -> None:
        """Let an override hold from now on where the model serves with it, else forget it."""
        held = self._held.get(name)
        if override is held:
            return
        if serves:
            self._held[name] = override
        gone = held if serves else override
        if gone is not None and gone.place is not None:
            self._uploads.drop(gone.place)

    def forget(self, name: str) -> None:
        """A model is unloaded: from now on its files in the repository are what it is."""
        self.settle(name, Override(), serves=True)
        self._held.pop(name, None)

    def close(self) -> None:
        """Remove all that was uploaded."""
        self._uploads.close()
