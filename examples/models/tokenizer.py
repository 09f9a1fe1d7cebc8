"""Text into tokens, as a Python model of the server (docs/python_backend.md): the first step of the ensemble in examples/sentences.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class Tokenize:
    """`options.tokenizer` is a tokenizer.json beside this file. A batch is padded to its longest text, and the mask says where."""

    def load(self, context: Any) -> None:
        """Once, in the lane's process."""
        self.tokenizer = Tokenizer.from_file(str(Path(context.folder) / context.options["tokenizer"]))
        self.tokenizer.enable_padding()

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """BYTES text [rows, 1] → INT64 input_ids and attention_mask [rows, tokens]."""
        encoded = self.tokenizer.encode_batch([text.decode() for text in inputs["text"][:, 0]])
        return {
            "input_ids": np.array([text.ids for text in encoded], np.int64),
            "attention_mask": np.array([text.attention_mask for text in encoded], np.int64),
        }
