"""Folders for engines, which are machine code: whoever may write there may run code as this user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from server.errors import ModelDefect

_ADVICE = "name another folder by `engines.cache`"


def private_folder(folder: Path) -> None:
    """Make a folder that nobody else writes to, or check that it's one. Raises ModelDefect."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
    except OSError as error:
        raise ModelDefect(f"engine cache {folder}: can't be made: {error.strerror}; {_ADVICE}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ModelDefect(f"engine cache {folder}: isn't a folder that this user alone writes to; engines are machine code: {_ADVICE}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelDefect(f"engine cache {folder}: can't be written to; {_ADVICE}")
