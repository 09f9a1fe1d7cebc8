"""The model repository on disk: which models and versions are there, and what is wrong with those that can't be offered.

    ROOT/NAME/model.yaml        optional; or Triton's config.pbtxt
    ROOT/NAME/VERSION/…         a decimal number without leading zeros

This file doesn't look into a version (repository.loader does). One bad entry is a Problem beside the others, never an error for all.
Stray files are ignored, and so is everything whose name begins with a dot: the exporter writes there before it renames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import ConfigError, ModelDefect
from server.repository.configs.pbtxt import PBTXT_NAME
from server.repository.configs.reading import NOTHING, Values, passed_over, read_model_config
from server.repository.declare.routing import Routing
from server.repository.marks import Mark, mark_of
from server.repository.model_config import CONFIG_NAME, ModelConfig, Versions
from server.repository.model_values import VERSION_PATTERN

IGNORED = frozenset({"lost+found"})  # what a file system puts at its own top
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}")
_VERSION = re.compile(VERSION_PATTERN)


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the repository: its folder, the versions that its policy offers, lowest first, what is laid over its model.yaml, and what
    its configuration asks for in vain; `routing` is how its requests are shared out."""

    name: str
    path: Path
    versions: tuple[str, ...]
    over: Values = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    routing: Routing = field(default_factory=Routing)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a model, or one version of it, can't be offered. `version` is "" where it's the whole model."""

    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a look at the repository found, by name."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]

    def of(self, name: str) -> Listing:
        """What there is of one model."""
        entries = (entry for entry in self.entries if entry.name == name)
        return Listing(tuple(entries), tuple(problem for problem in self.problems if problem.name == name))


class Store:
    """A repository folder. Nothing is kept between two looks. `also`: by model, versions that are offered whatever its policy says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.also: Mapping[str, tuple[str, ...]] = {}
        self._home = root

    def scan(self) -> Listing:
        """All that is there now. Raises ConfigError where the folder itself isn't readable."""
        return self._listing(self._folders())

    def find(self, name: str, over: Values = NOTHING) -> Listing:
        """One model as it is now, `over` laid over its configuration; an empty listing where there's none of this name. Raises
        ConfigError as `scan` does."""
        return self._listing([folder for folder in self._folders() if folder.name == name], over)

    def marks(self) -> dict[str, Mark]:
        """How each model's folder looks from outside. Raises ConfigError as `scan` does."""
        return {folder.name: mark_of(folder) for folder in self._folders()}

    def _listing(self, folders: list[Path], over: Values = NOTHING) -> Listing:
        entries: list[Entry] = []
        problems: list[Problem] = []
        for folder in folders:
            try:
                entry, found = self._entry(folder, over)
            except OSError as error:
                found = [Problem(folder.name, "", f"{folder}: can't be read: {error.strerror or error}")]
            else:
                entries += [entry] if entry.versions else []
            problems += found
        return Listing(tuple(entries), tuple(problems))

    def _folders(self) -> list[Path]:
        """The folders that stand for models, also those with names that can't be served."""
        try:
            self._home = self.root.resolve(strict=True)
            found = sorted(self.root.iterdir())
        except FileNotFoundError as error:
            raise ConfigError(
                f"model repository {self.root}: no such folder; make it (an empty one is fine) or export a model into it: "
                f"tidegate export … --repository {self.root}"
            ) from error
        except OSError as error:
            raise ConfigError(f"model repository {self.root}: can't be read: {error.strerror or error}") from error
        return [path for path in found if not path.name.startswith(".") and path.name not in IGNORED and not path.is_file()]

    def _entry(self, folder: Path, over: Values) -> tuple[Entry, list[Problem]]:
        name = folder.name
        fault = self._fault(folder)
        if fault:
            return Entry(name, folder, ()), [Problem(name, "", fault)]
        versions, problems = self._versions(folder)
        try:
            config = read_model_config(folder, over)
            warnings = passed_over(folder)
        except ModelDefect as error:
            return Entry(name, folder, ()), [Problem(name, version, str(error)) for version in versions or ("",)]
        offered = sorted({*_offered(versions, config.versions), *config.routing.versions, *self.also.get(name, ())}, key=int)
        problems += [
            Problem(name, version, f"{folder / version}: no such folder, but {_namer(version, config)} names it")
            for version in offered
            if version not in versions
        ]
        if not versions and not problems:
            problems.append(Problem(name, "", f"{folder}: no version; expected {folder / '1'} with a model in it"))
        there = tuple(version for version in offered if version in versions)
        return Entry(name, folder, there, over, warnings, config.routing), problems

    def _fault(self, folder: Path) -> str:
        """Why a folder can't be a model, "" where it can."""
        if not _NAME.fullmatch(folder.name):
            return f"{folder}: a model's name is letters, digits, '_', '-' and '.', and doesn't begin with '.'; rename the folder"
        for path in (folder, folder / CONFIG_NAME, folder / PBTXT_NAME):
            if not self._inside(path):
                return f"{path}: a link that leads out of the repository"
        return "" if folder.is_dir() else f"{folder}: neither a folder nor a file"

    def _versions(self, folder: Path) -> tuple[list[str], list[Problem]]:
        """The versions of a model, lowest first, and what looks like one and isn't. Other folders are the model's own affair."""
        versions: list[str] = []
        problems: list[Problem] = []
        for path in folder.iterdir():
            if not path.name.isdecimal() or path.is_file():
                continue
            if not _VERSION.fullmatch(path.name):
                problems.append(Problem(folder.name, path.name, f"{path}: a version is a decimal number from 1 without leading zeros"))
            elif not self._inside(path):
                problems.append(Problem(folder.name, path.name, f"{path}: a link that leads out of the repository"))
            elif path.is_dir():
                versions.append(path.name)
        return sorted(versions, key=int), sorted(problems, key=lambda problem: problem.version)

    def _inside(self, path: Path) -> bool:
        """Whether a path, links followed, stays in the repository. One that isn't there does."""
        try:
            return path.resolve(strict=True).is_relative_to(self._home)
        except FileNotFoundError:
            return not path.is_symlink()
        except (OSError, RuntimeError):  # a loop of links
            return False


def is_model_name(name: str) -> bool:
    """Whether a model may be called so."""
    return _NAME.fullmatch(name) is not None


def _offered(versions: list[str], said: Versions) -> list[str]:
    """What a policy offers of the versions that are there, lowest first; a list offers also what isn't there."""
    if said.policy == "latest":
        return versions[-said.count :]
    return versions if said.policy == "all" else sorted(set(said.policy), key=int)


def _namer(version: str, config: ModelConfig) -> str:
    """What names a version that isn't there."""
    if version in config.routing.versions:
        return "routing"
    return "versions.policy" if version in config.versions.policy else "what was set by the admin API"


def paths_below(repository: Path) -> re.Pattern[str]:
    """Matches the repository's own part of a path to something in it, as it was given and as links and the working folder make it."""
    spellings = sorted({str(repository), str(repository.absolute()), str(repository.resolve())}, key=len, reverse=True)
    return re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, spellings))})/")
