"""What clients may turn while the server runs: trace and log settings, as Triton names them. They act at once and end with the process."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from server.config import Settings
from server.errors import Denied, InvalidRequest
from server.logs import Journal
from server.router.router import Router
from server.tracing.sender import SpanSender, otlp_export
from server.tracing.settings import Setting, TraceSettings
from server.tracing.tracer import Tracer

LOG_LEVELS: Mapping[str, str] = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
LOG_FORMATS = ("default", "ISO8601")
MAX_VERBOSE = 2**32 - 1
_BOOLEANS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}(/(?!\.)[A-Za-z0-9._-]{1,128}){0,7}")


class Dials:
    """`tracer` is None where traces have nowhere to go: no endpoint, and clients may name no file. Raises ConfigError."""

    def __init__(self, settings: Settings, journal: Journal, router: Router) -> None:
        self._settings = settings
        self._journal = journal
        self._router = router
        self._log_file = ""
        self._first = self.logging()
        endpoint, files = settings.tracing.endpoint, "files" in settings.allow
        self.traces = TraceSettings(settings.tracing.sample if endpoint else 0.0, self._path)
        export = otlp_export(endpoint, settings.server_name) if endpoint else None
        self.sender = SpanSender(export) if export is not None or files else None
        self.tracer = Tracer(self.traces, self.sender) if self.sender is not None else None

    def close(self) -> None:
        """Send the traces that wait."""
        if self.sender is not None:
            self.sender.close()

    def tracing(self, model: str = "") -> dict[str, Setting]:
        """The trace settings of a model, or of all that have none of their own. Raises NotFound."""
        if model:
            self._router.entry(model, "")
        return self.traces.read(model)

    def set_tracing(self, wish: Mapping[str, Any], model: str = "") -> dict[str, Setting]:
        """Change what is named, clear what is null; what holds then. Nothing changes where it raises InvalidRequest, Unsupported, Denied
        or NotFound."""
        self.tracing(model)
        wanted = wish.get("trace_level")
        if self.tracer is None and wanted is not None and "OFF" not in wanted:
            raise InvalidRequest("trace_level: traces have nowhere to go: start the server with tracing.endpoint, or with allow: files")
        self.traces.change(wish, model)
        self._journal.lifecycle("trace_settings", model=model, settings=self.traces.read(model))
        return self.traces.read(model)

    def logging(self) -> dict[str, str | bool | int]:
        """The log settings."""
        shown = {name: level in self._journal.levels for name, level in LOG_LEVELS.items()}
        return {"log_file": self._log_file, **shown, "log_verbose_level": self._journal.verbose, "log_format": LOG_FORMATS[1]}

    def set_logging(self, wish: Mapping[str, Any]) -> dict[str, str | bool | int]:
        """As set_tracing; what is cleared is as the server was started."""
        now = self.logging()
        for name in now.keys() & wish.keys():
            now[name] = self._first[name] if wish[name] is None else _checked(name, wish[name])
        if now["log_file"] != self._log_file:
            name = str(now["log_file"])
            self._journal.redirect(self._opened(name) if name else None)
            self._log_file = name
        levels = {level for name, level in LOG_LEVELS.items() if now[name]}
        self._journal.lifecycle("log_settings", settings=now)  # before it may be the last line for a while
        self._journal.show(levels, int(now["log_verbose_level"]))
        return self.logging()

    def _opened(self, name: str) -> TextIO:
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidRequest(f"log_file: {name}: can't be written: {error.strerror}") from error
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def _path(self, name: str) -> Path:
        """Where a file that a client names lies: below files_dir. Raises Denied or InvalidRequest."""
        folder = self._settings.files_dir
        if "files" not in self._settings.allow or folder is None:
            raise Denied("clients may name no files here: start the server with --allow files, and files_dir in server.yaml")
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"expected a relative path of letters, digits and ._- for a file below files_dir, got {name[:64]!r}")
        path = folder / name
        try:
            inside = path.parent.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
        except OSError as error:
            raise InvalidRequest(f"{name}: its folder isn't there: {error.strerror}") from error
        if not inside or path.is_symlink() or path.is_dir():
            raise InvalidRequest(f"{name}: no file below files_dir")
        return path


def _checked(name: str, value: Any) -> str | bool | int:
    """The value of a log setting, by its name. Raises InvalidRequest."""
    if name in LOG_LEVELS:
        found = _BOOLEANS.get(str(value).lower())
        if found is None:
            raise InvalidRequest(f"{name}: expected true or false, got {str(value)[:64]!r}")
        return found
    if name == "log_verbose_level":
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > MAX_VERBOSE:
            raise InvalidRequest(f"log_verbose_level: expected a number from 0 to {MAX_VERBOSE}, got {text[:64]!r}")
        return int(text)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: expected text, got {type(value).__name__}")
    if name == "log_format" and value not in LOG_FORMATS:
        raise InvalidRequest(f"log_format: expected {' or '.join(LOG_FORMATS)}, got {value[:64]!r}")
    return value
