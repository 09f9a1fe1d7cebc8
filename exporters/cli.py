"""Turns a trained PyTorch model into a repository entry (ONNX and a manifest with proof): the `tidegate export` command."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from exporters.commands.diff import difference_table, differences
from exporters.commands.engine import Order, build_engine
from exporters.commands.entry import find_entry
from exporters.commands.verify import verify, verify_table
from exporters.inspect import manifest_lines, manifest_table
from exporters.package import manifest_path
from exporters.pipeline import Exported, export, steps
from exporters.plan import Plan, PlanError, parse_dynamic, parse_engine, parse_external_data, parse_gates, parse_prune, parse_target
from exporters.progress import following
from exporters.sources.names import EXAMPLES, find_model
from exporters.variants.engines import UNPROVEN
from server.errors import TidegateError

PLAIN_WIDTH = 120
_HELP_MODEL = (
    "FILE.py:FACTORY, MODULE:FACTORY, FILE.onnx, FILE.pt2, FILE.ts (TorchScript), a Hugging Face folder or cached model (bert_base, …), "
    "or an example's name."
)
_HELP_EXAMPLE = "Example inputs: .npz or .pt, arrays by input name. Default: what the module's example() gives."
_HELP_CALIBRATION = (
    "Real inputs for other precisions than fp32: .npz, or a folder (images, .wav, .txt, a recording). Default: calibration(), or made."
)
_HELP_EVAL = "Labelled rows (.npz: the inputs and `labels`): a variant must be as good on them as FP32 is."
_HELP_TOLERATE = "Change a precision's gate: relative, cosine, confident, metric, rows. Once a precision."
_HELP_ENTRY = "An entry (REPOSITORY/NAME/VERSION), a model's folder, or an exported ONNX file."
_HELP_ENGINE = "TensorRT's engines: most_rows, likely_rows, workspace (as 2GiB), timing_cache (a file), version_compatible=yes."
_HELP_EXTERNAL = "Weights of more than this lie beside the ONNX file, in FILE.data. Default: what doesn't fit one file (2 GiB)."
_HELP_DYNAMIC = "Axes of an input whose length varies, with the greatest length where there is one. Once an input."

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
EntryPath = Annotated[Path, typer.Argument(help=_HELP_ENTRY, metavar="DIR")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help=_HELP_MODEL, metavar="MODEL")] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict to load: .pt, .pth or .safetensors.", metavar="FILE")] = None,
    prune: Annotated[str | None, typer.Option(help="Set this share of each layer's channels to zero.", metavar="SHARE")] = None,
    example: Annotated[Path | None, typer.Option(help=_HELP_EXAMPLE, metavar="FILE")] = None,
    repository: Annotated[Path | None, typer.Option(help="Model repository to add a version to.", metavar="DIR")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the repository.", metavar="NAME")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the ONNX file here, and FILE.manifest.json.", metavar="FILE")] = None,
    version: Annotated[int | None, typer.Option(help="Version number. Default: the next free one.", min=1, metavar="N")] = None,
    format: Annotated[str, typer.Option(help="What to make.", metavar="onnx")] = "onnx",
    exporter: Annotated[str, typer.Option(help="Which of torch's exporters: torchscript or dynamo.", metavar="NAME")] = "torchscript",
    optimization_level: Annotated[int, typer.Option(help="How far the graph may be changed.", min=0, max=4)] = 2,
    precisions: Annotated[str, typer.Option(help="Precisions to make, separated by commas.", metavar="P,…")] = "fp32",
    target: Annotated[str, typer.Option(help="What it's for: cpu, cuda or tensorrt.", metavar="TARGET")] = "cpu",
    calibration: Annotated[Path | None, typer.Option(help=_HELP_CALIBRATION, metavar="PATH")] = None,
    eval: Annotated[Path | None, typer.Option("--eval", help=_HELP_EVAL, metavar="FILE")] = None,
    metric: Annotated[str | None, typer.Option(help="What --eval measures: accuracy, centroid or error.", metavar="METRIC")] = None,
    tolerate: Annotated[list[str] | None, typer.Option(help=_HELP_TOLERATE, metavar="P:KEY=N,…")] = None,
    engine: Annotated[str, typer.Option(help=_HELP_ENGINE, metavar="KEY=VALUE,…")] = "",
    external_data: Annotated[str | None, typer.Option(help=_HELP_EXTERNAL, metavar="SIZE")] = None,
    output_names: Annotated[str, typer.Option(help="Names for the outputs, in order.", metavar="A,B,…")] = "",
    dynamic: Annotated[list[str] | None, typer.Option(help=_HELP_DYNAMIC, metavar="NAME:AXIS[=MAX],…")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the steps and do nothing.")] = False,
    keep_rows: Annotated[bool, typer.Option(help="Leave some rows of the proof with the entry, for verify.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished steps in the user's cache, and use them again.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that the model's own code may take.", metavar="SECONDS")] = 600.0,
) -> None:
    """Export a trained PyTorch model to ONNX, prove it against PyTorch, and add it to a model repository."""
    if context.invoked_subcommand is not None:
        return
    with failures():
        asked = _asked(model)
        plan = Plan(
            model=find_model(asked, Path.cwd()),
            name=_name(asked, name, output),
            repository=repository,
            output=output,
            version=version,
            weights=weights,
            prune=parse_prune(prune),
            example=example,
            dynamic=parse_dynamic(tuple(dynamic or ())),
            output_names=_listed(output_names),
            format=format,
            exporter=exporter,
            level=optimization_level,
            precisions=_listed(precisions),
            target=parse_target(target),
            calibration=calibration,
            evaluation=eval,
            metric=metric,
            gates=parse_gates(tuple(tolerate or ())),
            keep_rows=keep_rows,
            resume=resume,
            timeout=timeout,
            engine=parse_engine(engine),
            external_data=parse_external_data(external_data),
        )
        _run(plan, dry_run)


def _run(plan: Plan, dry_run: bool) -> None:
    if dry_run:
        typer.echo("\n".join(f"{number}. {step.title}" for number, step in enumerate(steps(plan), 1)))
        return
    with following(Console(stderr=True)) as reporter:
        exported = export(plan, reporter)
    _show(exported)


@app.command("inspect")
def inspect_entry(path: EntryPath) -> None:
    """Show what an entry's manifest says: each variant's size, graph, speed and proof, and how it was made."""
    with failures():
        manifest = find_entry(path).manifest
        _console().print(manifest_table(manifest))
        typer.echo("\n".join(manifest_lines(manifest)))


@app.command("verify")
def verify_entry(path: EntryPath) -> None:
    """Prove an entry again on this machine: hashes, loading, parity, latency. Exits with 1 where something isn't as it was."""
    with failures():
        found = verify(find_entry(path))
        _console().print(verify_table(found))
        if any(one.faults for one in found):
            raise typer.Exit(1)


@app.command("engine")
def build_entry_engine(
    path: EntryPath,
    into: Annotated[Path, typer.Option(help="The folder to make: the engine, and its manifest.", metavar="FOLDER")],
    precision: Annotated[str, typer.Option(help="Which of the entry's ONNX files.", metavar="P")] = "fp32",
    engine: Annotated[str, typer.Option(help=_HELP_ENGINE, metavar="KEY=VALUE,…")] = "",
) -> None:
    """Build a TensorRT engine of an entry's ONNX file on this GPU, and prove it, into a folder beside the repository."""
    with failures():
        order = Order(find_entry(path), precision, into, parse_engine(engine))
        typer.echo(f"note: {UNPROVEN}", err=True)
        manifest = build_engine(order, lambda text: typer.echo(text, err=True))
        typer.echo(into)
        _console().print(manifest_table(manifest))


@app.command("diff")
def diff_entries(a: EntryPath, b: EntryPath) -> None:
    """Show what two entries differ in. Exits with 1 where it's more than measured times."""
    with failures():
        found = differences(find_entry(a).manifest, find_entry(b).manifest)
        if found:
            _console().print(difference_table(found))
        if any(not part.measured for part in found):
            raise typer.Exit(1)


@contextmanager
def failures() -> Iterator[None]:
    """Turns what can go wrong into one message on stderr and an exit status: 1 failed, 2 wrong usage, 130 interrupted."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except PlanError as error:
        _fail(str(error), 2)
    except TidegateError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename or 'writing the result'}: {error.strerror or error}; nothing was written", 1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


def _show(exported: Exported) -> None:
    """The data: what was written where, and its figures."""
    if exported.entry:
        typer.echo(exported.entry)
    if exported.output:
        typer.echo(exported.output)
        typer.echo(manifest_path(exported.output))
    _console().print(manifest_table(exported.manifest))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _asked(model: str | None) -> str:
    if model is None:
        raise PlanError("--model is missing: what is to be exported? `tidegate export --help` lists what it may be")
    return model


def _name(model: str, name: str | None, output: Path | None) -> str:
    """The model's name: the one given, else the example's, else the output file's."""
    if name is not None:
        return name
    if model in EXAMPLES:
        return model
    if output is None:
        raise PlanError("--name is missing: what is the model called in the repository?")
    return output.stem


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
