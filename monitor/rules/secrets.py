"""Secrets, read when they're needed: from an environment variable or a file, never from the rules file, never shown."""

from __future__ import annotations

import os

from monitor.rules.settings import Secret
from server.errors import ConfigError


def reveal(secret: Secret) -> str:
    """The secret itself. Raises ConfigError that says where it should be, where it isn't."""
    if secret.env is not None:
        where, value = f"environment variable {secret.env}", os.environ.get(secret.env, "")
    else:
        where = f"file {secret.file}"
        try:
            value = secret.file.read_text().strip() if secret.file is not None else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the secret in {where} can't be read") from error
    if not value:
        raise ConfigError(f"the secret in {where} is empty")
    return value
