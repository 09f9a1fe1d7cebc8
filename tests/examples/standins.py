"""Small models that answer the demo's questions rightly without having learned anything, under the demo's names and tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from examples import fetch
from examples.models import digits
from examples.photos import as_input, photos
from examples.questions import SENTENCES
from server.tensors import Tensor
from tests.server.models import value, write_model

CLASSES = 1000
TOPICS = ("A cat kitten sits rests on the a mat rug", "The stock market fell sharply today Shares dropped in heavy trading")
"""Words that mean the same thing to the stand-in for MiniLM; all others are a third topic."""


def digits_model(path: Path, shift: int = 0) -> Path:
    """FP32 image [N, 1, 8, 8] → logits [N, 10]: how near each class's nearest training image is. `shift` names the wrong classes."""
    known = digits.data()
    images, labels = known.train_images.reshape(-1, 64), (known.train_labels + shift) % 10
    most = int(np.bincount(labels).max())
    columns = np.concatenate([np.resize(np.flatnonzero(labels == label), most) for label in range(10)])
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "images", "bias"], ["near"]),
        helper.make_node("Reshape", ["near", "by_class"], ["classes"]),
        helper.make_node("ReduceMax", ["classes"], ["logits"], axes=[2], keepdims=0),
    ]
    chosen = images[columns]
    weights: dict[str, Tensor] = {
        "images": np.ascontiguousarray(chosen.T),
        "bias": -(chosen**2).sum(1) / 2,
        "by_class": np.array([-1, 10, most]),
    }
    return write_model(path, nodes, [value("image", ["N", 1, 8, 8])], [value("logits", ["N", 10])], weights)


def photos_model(path: Path, shift: int = 0) -> Path:
    """FP32 image [N, 3, 224, 224] → logits [N, 1000]: the class of the known photo whose mean colour is nearest."""
    colours = np.stack([as_input(photo).mean((2, 3))[0] for photo in photos()])
    classes = [(min(photo.shows) + shift) % CLASSES for photo in photos()]
    weight, bias = np.zeros((3, CLASSES), np.float32), np.full(CLASSES, -1e4, np.float32)
    weight[:, classes], bias[classes] = 200 * colours.T, -100 * (colours**2).sum(1)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["colour", "weight", "bias"], ["logits"]),
    ]
    outputs = [value("logits", ["N", CLASSES])]
    return write_model(path, nodes, [value("image", ["N", 3, 224, 224])], outputs, {"weight": weight, "bias": bias})


def words() -> list[str]:
    """The vocabulary, padding first: every word and mark of the demo's sentences."""
    splitter = Whitespace()
    return ["[PAD]", *dict.fromkeys(word for sentence in SENTENCES for word, _ in splitter.pre_tokenize_str(sentence))]


def sentences_model(path: Path, sees_topics: bool = True) -> Path:
    """INT64 input_ids and attention_mask [N, L] → sentence_embedding [N, 3]: the share of each topic, at length 1."""
    table = np.full((len(words()), 3), 0.1, np.float32)
    for row, word in enumerate(words()):
        topic = next((index for index, known in enumerate(TOPICS) if word in known.split()), 2)
        table[row, topic if sees_topics else 0] = 1.0
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["vectors", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=0),
        helper.make_node("LpNormalization", ["total"], ["sentence_embedding"], axis=1, p=2),
    ]
    inputs = [value(name, ["N", "L"], "INT64") for name in ("input_ids", "attention_mask")]
    weights = {"table": table, "last": np.array([2]), "tokens": np.array([1])}
    return write_model(path, nodes, inputs, [value("sentence_embedding", ["N", 3])], weights)


def fetched(folder: Path) -> Path:
    """What the questions read of the fetched packages: a tokenizer of whole words, and names for the classes."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words())}, "[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    (folder / fetch.MINILM).mkdir(parents=True)
    tokenizer.save(str(folder / fetch.MINILM / "tokenizer.json"))
    names = folder / fetch.CLASS_NAMES
    names.parent.mkdir()
    names.write_text(json.dumps([f"class {number}" for number in range(CLASSES)]))
    return folder


def repository(root: Path, *, right: bool = True) -> Path:
    """All three, right or wrong."""
    digits_model(root / "digits" / "1" / "model.onnx", 0 if right else 1)
    photos_model(root / "mobilenet_v2" / "1" / "model.onnx", 0 if right else 1)
    sentences_model(root / "minilm" / "1" / "model.onnx", right)
    return root
