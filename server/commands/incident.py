"""`tidegate incident capture`: asks a running server for its rings of events and writes them to a file."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from server.commands.asking import asking, read_token
from server.errors import TidegateError

TARGET = "/admin/incident"
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


def fetch(url: str, token: str, out: BinaryIO) -> None:
    """Copy the server's answer to `out`. Raises TidegateError that says what the server or the network said."""
    with asking(url, "POST", TARGET, token) as response:
        while piece := response.read(CHUNK):
            out.write(piece)
