"""`tidegate incident capture`: asks a running server for its rings of events and writes them to a file."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO
from urllib.parse import urlsplit

import orjson
import typer

from server.errors import TidegateError

TARGET = "/admin/incident"
TIMEOUT = 30.0
CHUNK = 1 << 16

app = typer.Typer(help="Write out what a server remembers of its last moments.", add_completion=False)


@app.callback()
def incident() -> None:
    """Write out what a server remembers of its last moments: arrivals, batches, lane and routing events."""


@app.command()
def capture(
    url: Annotated[str, typer.Option(help="The server's HTTP address.")] = "http://127.0.0.1:8000",
    output: Annotated[Path | None, typer.Option(help="File to write; - for stdout; default incident-DATE.jsonl here.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token of class debug; else TIDEGATE_TOKEN, if set.")] = None,
) -> None:
    """Ask a running server for the last arrivals, batches, lane and routing events. `tidegate simulate` reads the file."""
    token = read_token(token_file)
    if output == Path("-"):
        fetch(url, token, sys.stdout.buffer)
        return
    path = output or Path(f"incident-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            fetch(url, token, file)
        partial.replace(path)
    except OSError as error:
        raise TidegateError(f"{path}: can't be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    typer.echo(str(path))


def read_token(file: Path | None) -> str:
    """The bearer token to show, "" for none."""
    if file is None:
        return os.environ.get("TIDEGATE_TOKEN", "")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TidegateError(f"--token-file: {file}: can't be read: {error}") from error


def fetch(url: str, token: str, out: BinaryIO) -> None:
    """Copy the server's answer to `out`. Raises TidegateError that says what the server or the network said."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with closing(_connect(url)) as connection:
        try:
            connection.request("POST", TARGET, headers=headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise TidegateError(f"{url}{TARGET}: status {response.status}: {_said(response.read(CHUNK))}")
            while piece := response.read(CHUNK):
                out.write(piece)
        except http.client.HTTPException as error:
            raise TidegateError(f"{url}: not an answer of tidegate: {error!r}") from error
        except (ConnectionError, TimeoutError) as error:
            raise TidegateError(f"{url}: can't be reached: {error}; is the server running there? --url says where it is") from error


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kinds: Mapping[str, type[http.client.HTTPConnection]] = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise TidegateError(f"--url: expected http://HOST:PORT or https://HOST:PORT, got {url!r}")
    try:
        return kinds[parts.scheme](parts.hostname, parts.port, timeout=TIMEOUT)
    except ValueError as error:
        raise TidegateError(f"--url: {url!r}: {error}") from error


def _said(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
