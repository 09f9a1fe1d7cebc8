"""What the commands that ask a running server's admin API share: the connection, the token, and errors that say what to do."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from server.errors import TidegateError

TIMEOUT = 30.0
SAID = 1 << 16  # bytes of an error's text that are read


def read_token(file: Path | None) -> str:
    """The bearer token to show, "" for none."""
    if file is None:
        return os.environ.get("TIDEGATE_TOKEN", "")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TidegateError(f"--token-file: {file}: can't be read: {error}") from error


@contextmanager
def asking(
    url: str, method: str, target: str, token: str, *, wish: Mapping[str, Any] | None = None, timeout: float = TIMEOUT
) -> Iterator[http.client.HTTPResponse]:
    """The server's answer, to be read. Raises TidegateError that says what the server or the network said."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with closing(_connect(url, timeout)) as connection:
        try:
            connection.request(method, target, None if wish is None else orjson.dumps(wish), headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise TidegateError(f"{url}{target}: status {response.status}: {_said(response.read(SAID))}")
            yield response
        except http.client.HTTPException as error:
            raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error
        except (ConnectionError, TimeoutError) as error:
            raise TidegateError(f"{url}: can't be reached: {error}; is the server running there? --url says where it is") from error


def _connect(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kinds: Mapping[str, type[http.client.HTTPConnection]] = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise TidegateError(f"--url: expected http://HOST:PORT or https://HOST:PORT, got {url!r}")
    try:
        return kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
    except ValueError as error:
        raise TidegateError(f"--url: {url!r}: {error}") from error


def _said(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
