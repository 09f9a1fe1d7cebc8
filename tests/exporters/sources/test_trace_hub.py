"""A Hugging Face folder is a model with an example and dynamic axes of its own; what it lacks is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from exporters.cli import app
from exporters.sources.trace_hub import module_of
from exporters.sources.trace_state import RefusedError
from server.repository.manifest import file_sha256, read_manifest

BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 99, "max_position_embeddings": 24}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights, saved as its pretraining leaves it."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("hub") / "bert"
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=99, max_position_embeddings=24)).save_pretrained(folder)
    return folder


def folder_of(tmp_path: Path, config: Any, weights: str | None = "model.safetensors") -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if weights:
        (tmp_path / weights).touch()
    return tmp_path


def test_bert_base_from_the_cache_with_the_command_of_the_manual(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "home" / "hub" / "models--google-bert--bert-base-uncased" / "snapshots" / "abc"
    shutil.copytree(bert, snapshot)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    command = "--model bert_base --format onnx --optimization-level 3 --output optimized_model.onnx"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.stderr
    manifest = read_manifest(tmp_path / "optimized_model.onnx.manifest.json")
    assert (manifest.model, manifest.source.kind, manifest.source.factory) == ("optimized_model", "huggingface", "bert_base")
    assert manifest.source.weights_sha256 == file_sha256(bert / "model.safetensors")
    assert manifest.source.code_sha256 is None
    (variant,) = manifest.variants
    assert [(entry.name, entry.max_shape) for entry in variant.inputs] == [("input_ids", (-1, 24)), ("attention_mask", (-1, 24))]
    assert [(entry.name, entry.shape) for entry in variant.outputs] == [("last_hidden_state", (-1, -1, 16))]
    assert len(variant.tried) >= 2


def test_the_example_has_padding(tmp_path: Path) -> None:
    module = module_of(folder_of(tmp_path, BERT | {"pad_token_id": 7}))
    example = module.example()
    assert example["input_ids"].shape == example["attention_mask"].shape == (4, 16)
    np.testing.assert_array_equal(example["attention_mask"].sum(axis=1), [16, 8, 16, 8])
    assert (example["input_ids"][example["attention_mask"] == 0] == 7).all()
    assert module.dynamic() == {"input_ids": {0: None, 1: 24}, "attention_mask": {0: None, 1: 24}}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (BERT | {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 514}, 512),
        ({"model_type": "t", "vocab_size": 9}, None),
    ],
)
def test_the_greatest_length(tmp_path: Path, config: dict[str, Any], longest: int | None) -> None:
    assert module_of(folder_of(tmp_path, config)).dynamic()["input_ids"] == {0: None, 1: longest}


def test_a_model_that_takes_no_tokens_needs_an_example(tmp_path: Path) -> None:
    assert not hasattr(module_of(folder_of(tmp_path, {"model_type": "vit"})), "example")


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ("{", "model.safetensors", "config.json can't be read"),
        ("[1]", "model.safetensors", "config.json has no model_type"),
        (BERT | {"auto_map": {}}, "model.safetensors", "needs code of its own (auto_map), which isn't run"),
        (BERT, "pytorch_model.bin", "has no .safetensors; other weights are pickles"),
    ],
)
def test_what_is_refused(tmp_path: Path, config: Any, weights: str, said: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        module_of(folder_of(tmp_path, config, weights))


def test_weights_that_are_missing(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(RefusedError, match=r"bert lacks \d+ weights of BertForSequenceClassification: .*classifier"):
        module_of(tmp_path / "bert").make()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMagic"]}))
    with pytest.raises(RefusedError, match=r"the installed transformers \S+ has no BertForMagic"):
        module_of(tmp_path / "bert").make()
