"""A Hugging Face folder (config.json and safetensors) as if it were a user's module; a part of trace_child's process.

Only what lies in the folder is read, and only safetensors: no pickle, no code of the folder's own, no network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .samples import Arrays
from .trace_state import RefusedError

FACTORY = "make"
ROWS, TOKENS = 4, 16
PRETRAINING = ("ForMaskedLM", "ForPreTraining", "LMHeadModel")
"""Heads that were there to train the encoder: it's served without them."""
OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Kinds of model that count positions from the padding token on."""


def module_of(folder: Path) -> ModuleType:
    """A module with a factory, an example and the axes that vary, made from the folder's config. Raises RefusedError."""
    config = _config(folder)
    module = ModuleType("hub")
    vars(module)[FACTORY] = lambda: _model(folder, config)
    if "vocab_size" in config:
        vars(module).update(example=lambda: _example(config), dynamic=lambda: _axes(config))
    return module


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RefusedError(f"{folder.name}/config.json can't be read: {error}") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise RefusedError(f"{folder.name}/config.json has no model_type: it isn't a transformers model's")
    if "auto_map" in found:
        raise RefusedError(f"{folder.name} needs code of its own (auto_map), which isn't run; write a factory: --model FILE.py:FACTORY")
    if not any(folder.glob("*.safetensors")):
        raise RefusedError(f"{folder.name} has no .safetensors; other weights are pickles, which could run any code and are refused")
    return found


def _model(folder: Path, config: dict[str, Any]) -> torch.nn.Module:
    """The model with its trained head, or its encoder; every weight must come from the folder."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    import transformers

    architecture = next(iter(config.get("architectures") or ()), "")
    headless = not architecture or architecture.endswith(PRETRAINING)
    kind = transformers.AutoModel if headless else getattr(transformers, architecture, None)
    if kind is None:
        raise RefusedError(f"{folder.name}: the installed transformers {transformers.__version__} has no {architecture}")
    model, missing = _loaded(kind, folder)
    if missing and all(name.startswith("pooler.") for name in missing):
        model, missing = _loaded(kind, folder, add_pooling_layer=False)
    if missing:
        raise RefusedError(f"{folder.name} lacks {len(missing)} weights of {type(model).__name__}: {', '.join(missing[:5])}")
    return model.float()


def _loaded(kind: Any, folder: Path, **options: Any) -> tuple[torch.nn.Module, list[str]]:
    # Eager attention is plain MatMul and Softmax in the graph, which every runtime and every fusion pass knows.
    options |= {"attn_implementation": "eager", "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    model, info = kind.from_pretrained(folder, **options)
    return model, sorted(info["missing_keys"])


def _example(config: dict[str, Any]) -> Arrays:
    """Random tokens, every second row half padding: what a model means is its own affair, its arithmetic is the same."""
    tokens = min(TOKENS, _longest(config) or TOKENS)
    ids = np.random.default_rng(0).integers(1, config["vocab_size"], (ROWS, tokens))
    mask = np.ones_like(ids)
    mask[1::2, (tokens + 1) // 2 :] = 0
    padding = config.get("pad_token_id") or 0
    return {"input_ids": np.where(mask == 1, ids, padding), "attention_mask": mask}


def _axes(config: dict[str, Any]) -> dict[str, dict[int, int | None]]:
    axes = {0: None, 1: _longest(config)}
    return {"input_ids": axes, "attention_mask": dict(axes)}


def _longest(config: dict[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if positions and config["model_type"] in OFFSET_POSITIONS:
        return int(positions) - int(config.get("pad_token_id") or 0) - 1
    return int(positions) if positions else None
