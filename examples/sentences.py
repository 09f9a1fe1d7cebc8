"""A sentence in, its embedding out: `python -m examples.sentences`. An ensemble of a tokenizer (Python) and MiniLM (ONNX), made beside the
demo's models, served and asked; docs/ensembles.md explains it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as client
from numpy.typing import NDArray
from rich.console import Console

from examples import fetch
from examples.prepare import ROOT, TIDEGATE, WORK, PrepareError, prepare
from examples.questions import ALIKE, SENTENCES, WrongAnswerError
from examples.serving import ServerError, ServerProcess

REPOSITORY = ROOT / "build" / "sentences"
LOG = WORK / "sentences.log"
TOKENIZER = """backend: python
python: {code: tokenizer.py:Tokenize, options: {tokenizer: tokenizer.json}}
inputs: {text: {dtype: BYTES, shape: [-1, 1]}}
outputs: {input_ids: {dtype: INT64, shape: [-1, -1]}, attention_mask: {dtype: INT64, shape: [-1, -1]}}
batching: {max_rows: 32}
"""
SENTENCE = """description: A sentence's meaning as a unit vector
ensemble:
  steps:
    - model: tokenizer
      inputs: {text: text}
      outputs: {input_ids: ids, attention_mask: mask}
    - model: minilm
      inputs: {input_ids: ids, attention_mask: mask}
      outputs: {sentence_embedding: embedding}
"""


def place(repository: Path, minilm: Path, tokenizer: Path) -> Path:
    """Make a repository of three: MiniLM's entry copied from `minilm`, the tokenizer over its `tokenizer` file, and the ensemble."""
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(minilm, repository / "minilm")
    code = repository / "tokenizer" / "1"
    code.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "models" / "tokenizer.py", code)
    shutil.copy(tokenizer, code / "tokenizer.json")
    (repository / "tokenizer" / "model.yaml").write_text(TOKENIZER)
    (repository / "sentence" / "1").mkdir(parents=True)
    (repository / "sentence" / "model.yaml").write_text(SENTENCE)
    return repository


def embed(http: str, sentences: tuple[str, ...] = SENTENCES) -> NDArray[np.float32]:
    """The embeddings of sentences [rows, 384], in one request."""
    texts = np.array([[sentence.encode()] for sentence in sentences], object)
    tensor = client.InferInput("text", list(texts.shape), "BYTES")
    tensor.set_data_from_numpy(texts)
    with client.InferenceServerClient(http) as triton:
        found: NDArray[np.float32] = triton.infer("sentence", [tensor]).as_numpy("embedding")
    return found


def check(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """How alike the sentences are. Raises WrongAnswerError unless those that say the same are the most alike."""
    likeness = vectors @ vectors.T
    others = likeness - 2 * np.eye(len(vectors), dtype=np.float32)
    for one, other in ALIKE:
        if int(others[one].argmax()) != other:
            raise WrongAnswerError(f"{SENTENCES[one]!r} should be most like {SENTENCES[other]!r}: {likeness[one].round(2)}")
    return likeness


def main() -> int:
    """The command: 0 when the answers are right."""
    console = Console(highlight=False)
    try:
        models = prepare(console)
        place(REPOSITORY, models / "minilm", fetch.models_folder() / fetch.MINILM / "tokenizer.json")
        ports = ("--http-port", "0", "--grpc-port", "off", "--metrics-port", "0")
        with ServerProcess([TIDEGATE, "serve", "--repository", str(REPOSITORY), *ports], LOG) as server:
            console.print(f"serving {', '.join(sorted(server.ready['models']))}")
            likeness = check(embed(server.ready["http"]))
    except (PrepareError, ServerError, fetch.FetchError, WrongAnswerError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    for sentence, row in zip(SENTENCES, likeness, strict=True):
        console.print(" ".join(f"{value:5.2f}" for value in row), f" {sentence}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
