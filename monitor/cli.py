"""Watch a server's metrics and raise alerts (not built yet)."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def monitor() -> None:
    """Watch a server's metrics and raise alerts (not built yet).

    It comes with the monitor (rules in YAML, notifiers, rendered Prometheus rules and dashboards).
    Until then, point Prometheus at the server's /metrics.
    """
    typer.echo("error: tidegate monitor is not built yet: it comes with the monitor; until then, scrape /metrics", err=True)
    raise typer.Exit(2)
