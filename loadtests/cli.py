"""Put a server under load and report what it bears (not built yet)."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def loadtest() -> None:
    """Put a server under load and report what it bears (not built yet).

    It comes with the load tests (scenarios in YAML, open-loop arrivals, reports).
    """
    typer.echo("error: tidegate loadtest is not built yet: it comes with the load tests", err=True)
    raise typer.Exit(2)
