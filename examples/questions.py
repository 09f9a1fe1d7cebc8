"""What the demo asks its models, with the stock Triton client, and whether the answers are right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.http as client
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from examples import fetch
from examples.models import digits
from examples.photos import as_input, photos

SENTENCES = (
    "A cat sits on the mat.",
    "A kitten rests on a rug.",
    "The stock market fell sharply today.",
    "Shares dropped in heavy trading.",
    "How do I reset my password?",
)
ALIKE = ((0, 1), (2, 3))
"""Pairs of sentences that say the same in other words."""

LEAST_ACCURACY = 0.95
SHOWN_DIGITS = 20
DATATYPES = {"float32": "FP32", "int64": "INT64"}


class WrongAnswerError(Exception):
    """A model answered, and its answer isn't right."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A connection to the server."""

    triton: Any

    def ask(self, model: str, arrays: dict[str, NDArray[Any]], output: str) -> NDArray[Any]:
        """One request; one output of its answer. Tensors travel in the binary form."""
        answer = self.triton.infer(model, as_inputs(arrays))
        found: NDArray[Any] = answer.as_numpy(output)
        return found


def as_inputs(arrays: dict[str, NDArray[Any]]) -> list[Any]:
    """Arrays as the client's input objects."""
    inputs = []
    for name, array in arrays.items():
        tensor = client.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def ask_sentences(console: Console, asker: Asker) -> None:
    """Which sentences mean the same. Raises WrongAnswerError unless each pair in ALIKE is the most alike of its row."""
    tokenizer = Tokenizer.from_file(str(fetch.models_folder() / fetch.MINILM / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    ids = np.array([sentence.ids for sentence in encoded], np.int64)
    mask = np.array([sentence.attention_mask for sentence in encoded], np.int64)
    vectors = asker.ask("minilm", {"input_ids": ids, "attention_mask": mask}, "sentence_embedding")
    likeness = vectors @ vectors.T
    table = Table("", "sentence", *(str(number + 1) for number in range(len(SENTENCES))))
    for number, (sentence, row) in enumerate(zip(SENTENCES, likeness, strict=True)):
        table.add_row(str(number + 1), sentence, *(f"{value:.2f}" for value in row))
    console.print(table)
    others = likeness - 2 * np.eye(len(SENTENCES))
    for one, other in ALIKE:
        if int(others[one].argmax()) != other:
            raise WrongAnswerError(
                f"minilm: {SENTENCES[one]!r} should be most like {SENTENCES[other]!r}: likeness {likeness[one].round(2)}"
            )


def ask_photos(console: Console, asker: Asker) -> None:
    """What is on four photos. Raises WrongAnswerError when the likeliest class is none that names it."""
    names = json.loads((fetch.models_folder() / fetch.CLASS_NAMES).read_bytes())
    table = Table("photo", "likeliest", "second", "third")
    wrong = []
    for photo in photos():
        logits = asker.ask("mobilenet_v2", {"image": as_input(photo)}, "logits")[0]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = [int(index) for index in shares.argsort()[::-1][:3]]
        table.add_row(photo.name, *(f"{names[index]} {shares[index]:.0%}" for index in best))
        if best[0] not in photo.shows:
            wrong.append(f"mobilenet_v2: the photo of a {photo.name} was taken for: {names[best[0]]}")
    console.print(table)
    if wrong:
        raise WrongAnswerError("; ".join(wrong))


def ask_digits(console: Console, asker: Asker) -> None:
    """All held-out digits, in requests of up to 64 rows. Raises WrongAnswerError under an accuracy of 95 %."""
    held_out = digits.data()
    images, labels = held_out.test_images, held_out.test_labels
    parts = [asker.ask("digits", {"image": images[start : start + 64]}, "logits") for start in range(0, len(images), 64)]
    read = np.concatenate(parts).argmax(1)
    table = Table("digits", "", show_header=False)
    for what, shown in (("written", labels), ("read", read)):
        table.add_row(what, " ".join(map(str, shown[:SHOWN_DIGITS])))
    console.print(table)
    right = int((read == labels).sum())
    console.print(f"{right} of {len(labels)} digits that it never saw are read right ({right / len(labels):.1%})")
    if right / len(labels) < LEAST_ACCURACY:
        raise WrongAnswerError(f"digits: accuracy {right / len(labels):.1%}, expected at least {LEAST_ACCURACY:.0%}")
