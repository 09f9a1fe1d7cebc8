"""What is asked: requests made beforehand from what the server says about its models, so that nothing is encoded while time is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.quantities import Distribution
from loadtests.scenario import Asked, Values
from server.errors import ConfigError
from server.messages import NO_PARAMETERS, InferRequest, Layout, RequestedOutput, Scalar
from server.tensors import DTYPES, Tensor

POOL = 64  # different requests of one kind; they are sent in turn
POOL_BYTES = 64 << 20  # of one kind's tensors
TOKENS = 100  # ids below this are drawn where nothing is said: every vocabulary has them
CHARACTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


@dataclass(frozen=True, slots=True)
class Input:
    """An input as the server describes it: shape with -1 where it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a request is made from. `batched`: the first axis counts rows; `max_rows` bounds them."""

    name: str
    inputs: tuple[Input, ...]
    batched: bool
    max_rows: int


@dataclass(frozen=True, slots=True)
class Question:
    """One request, ready to be encoded by a client. `kind` is its place in the mix."""

    kind: int
    request: InferRequest
    rows: int


def facts_of(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> ModelFacts:
    """From GET /v2/models/M and …/config. Raises ConfigError for an answer that isn't the protocol's."""
    try:
        inputs = tuple(Input(each["name"], each["datatype"], tuple(map(int, each["shape"]))) for each in metadata["inputs"])
        most = int(config.get("max_batch_size", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the server's metadata doesn't follow the Open Inference Protocol: {error!r}") from error
    unknown = sorted({each.datatype for each in inputs} - DTYPES.keys())
    if unknown:
        raise ConfigError(f"model {metadata.get('name')!r} takes datatypes that aren't known here: {', '.join(unknown)}")
    return ModelFacts(str(metadata.get("name", "")), inputs, most > 0, most)


def questions(kind: int, asked: Asked, facts: ModelFacts, random: np.random.Generator) -> list[Question]:
    """Requests of one kind, alike but for their drawn rows, lengths and values. Raises ConfigError where they can't be made."""
    for name in asked.values:
        if name not in {each.name for each in facts.inputs}:
            raise ConfigError(f"model {asked.model!r} has no input {name!r}, but {', '.join(each.name for each in facts.inputs)}")
    rows = asked.rows.draw(random, POOL)
    if facts.batched and rows.max() > facts.max_rows:
        raise ConfigError(f"model {asked.model!r} takes at most {facts.max_rows} rows in a request, the mix draws up to {rows.max()}")
    if not facts.batched and rows.max() > 1:
        raise ConfigError(f"model {asked.model!r} is served unbatched: rows must be 1, the mix draws up to {rows.max()}")
    lengths = (asked.length or Distribution()).draw(random, POOL)
    maker = _Maker(asked, facts, random)
    made: list[Question] = []
    size = 0
    for row_count, length in zip(rows, lengths, strict=True):
        inputs = {each.name: maker.tensor(each, int(row_count), int(length)) for each in facts.inputs}
        made.append(Question(kind, _request(asked, inputs), int(row_count)))
        size += sum(array.nbytes for array in inputs.values())
        if size > POOL_BYTES:
            break
    return made


def _request(asked: Asked, inputs: dict[str, Tensor]) -> InferRequest:
    parameters: dict[str, Scalar] = {}
    if asked.priority:
        parameters["priority"] = asked.priority
    if asked.timeout is not None:
        parameters["timeout"] = round(asked.timeout * 1e6)
    if asked.precision:
        parameters["precision"] = asked.precision
    outputs = tuple(RequestedOutput(name) for name in asked.outputs)
    return InferRequest(asked.model, inputs, Layout(()), asked.version, outputs=outputs, parameters=parameters or NO_PARAMETERS)


class _Maker:
    """Makes the tensors of one kind of request."""

    def __init__(self, asked: Asked, facts: ModelFacts, random: np.random.Generator) -> None:
        self._asked = asked
        self._batched = facts.batched
        self._random = random
        self._files = {name: _rows_of(values.file, name) for name, values in asked.values.items() if values.file is not None}

    def tensor(self, spec: Input, rows: int, length: int) -> Tensor:
        """Values for one input. Raises ConfigError for an axis that nothing is said about."""
        source = self._files.get(spec.name)
        if source is not None:
            return np.take(source, self._random.integers(0, len(source), rows), axis=0) if self._batched else source
        shape = list(spec.shape)
        if self._batched and shape:
            shape[0] = rows
        if -1 in shape and self._asked.length is None:
            raise ConfigError(
                f"model {self._asked.model!r}: axis {shape.index(-1)} of input {spec.name!r} varies, shape {list(spec.shape)}: "
                "say `length` in the mix, such as length: {kind: lognormal, median: 28, max: 128}"
            )
        return _drawn(spec, [length if size == -1 else size for size in shape], self._asked.values.get(spec.name), self._random)


def _drawn(spec: Input, shape: Sequence[int], said: Values | None, random: np.random.Generator) -> Tensor:
    kind = DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        texts = [random.choice(CHARACTERS, 16).tobytes() for _ in range(int(np.prod(shape)))]
        return np.array(texts, object).reshape(shape)
    if spec.datatype == "BOOL":
        return random.random(shape) < 0.5
    if np.issubdtype(kind.numpy, np.integer):
        low, high = (said.low, said.high) if said is not None else (1, min(TOKENS, np.iinfo(kind.numpy).max))
        return random.integers(int(low), int(high), shape, dtype=np.int64, endpoint=True).astype(kind.numpy)
    if said is not None:
        return random.uniform(said.low, said.high, shape).astype(kind.numpy)
    return random.standard_normal(shape).astype(kind.numpy)


def _rows_of(path: Path, name: str) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive:
                raise ConfigError(f"{path}: no array {name!r}, but {', '.join(archive.files) or 'none'}")
            array: Tensor = archive[name]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable npz file: {error}") from error
    if not array.ndim or not len(array):
        raise ConfigError(f"{path}: array {name!r} has no rows")
    return array


def kinds_drawn(mix: Sequence[Asked], count: int, random: np.random.Generator) -> Tensor:
    """Which kind each of `count` requests is, by the shares of the mix."""
    shares = np.asarray([asked.share for asked in mix])
    drawn: Tensor = random.choice(len(mix), count, p=shares / shares.sum())
    return drawn
