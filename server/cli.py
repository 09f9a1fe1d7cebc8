"""`tidegate serve`: flags and file → settings → App, signals and the ready line."""

from __future__ import annotations

import asyncio
import gc
import signal
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from server.app import App
from server.backends.registry import backend_named
from server.commands.check import show, understand
from server.config import Settings, load_settings

GC_THRESHOLDS = (20_000, 20, 50)  # allocations between collections: a request makes a dozen objects, few of them in cycles

app = typer.Typer(help="Serve a model repository over HTTP and gRPC (Open Inference Protocol).", add_completion=False)


@app.command()
def serve(
    repository: Annotated[Path | None, typer.Option(help="Folder with the models: NAME/VERSION/model.onnx.")] = None,
    config: Annotated[Path | None, typer.Option(help="server.yaml; a flag wins over TIDEGATE_*, which wins over the file.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say how each model is understood, and start nothing.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    http_port: Annotated[int | None, typer.Option(help="HTTP port; 0 for any free one.")] = None,
    grpc_port: Annotated[str | None, typer.Option(help="gRPC port; 0 for any free one, off for none.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 for any free one.")] = None,
    model_control: Annotated[str | None, typer.Option(help="none, poll (follow what changes) or explicit (clients load models).")] = None,
    load_model: Annotated[list[str] | None, typer.Option(help="With explicit: a model to load at the start; '*' for all.")] = None,
    allow: Annotated[str | None, typer.Option(help="Of upload, files and shared-memory what clients may do, with commas.")] = None,
) -> None:
    """Serve every model in the repository. Prints one line of JSON on stdout when ready; logs go to stderr."""
    flags = {
        "repository": repository,
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "model_control": model_control,
        "load_model": load_model or None,
        "allow": allow,
    }
    settings = load_settings(config, flags)
    if check:
        found = understand(settings)
        show(found, Console())
        raise typer.Exit(1 if any(one.fault for one in found) else 0)
    backend_named("onnxruntime")  # names the extras to install, before anything listens
    uvloop.run(_serve(settings))


def _calm_collector() -> None:
    """What is there once the models are loaded stays: the garbage collector needn't look at it while requests are served."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _serve(settings: Settings) -> None:
    server = App(settings)
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            server.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        _calm_collector()
        typer.echo(server.ready_line())
    await stopping
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await server.stop()
