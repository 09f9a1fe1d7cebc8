"""A model's configuration from whichever file it has: model.yaml, else Triton's config.pbtxt, else none; and what a load lays over it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from google.protobuf.json_format import ParseDict, ParseError

from server.documents import Document, read_yaml
from server.errors import InvalidRequest, ModelDefect, TidegateError
from server.protocol.proto.messages import POOL
from server.repository.configs.pbtxt import PBTXT_NAME, FieldPath, TritonConfig, read_pbtxt
from server.repository.configs.translate import Translated, translate
from server.repository.model_config import CONFIG_NAME, ModelConfig, refuse_not_built
from server.validation import KeyPath

Values: TypeAlias = Mapping[str, Any]
NOTHING: Values = MappingProxyType({})
OVERRIDE = Path("config")
"""What errors call the configuration that came with a load."""


@dataclass(frozen=True, slots=True)
class TritonDocument(Document):
    """A Triton configuration in model.yaml's words. Errors are in its own: `fields` says which field a key came from, `places` where
    that stands."""

    fields: Mapping[KeyPath, FieldPath]
    places: Mapping[FieldPath, str]

    def where(self, key: KeyPath) -> str:
        """`file:line:column` of what a key came from."""
        return self._where(self._field(key))

    def error(self, key: KeyPath, message: str) -> TidegateError:
        """The error for what is wrong at `key`, to be raised by the caller."""
        part = message.partition(":")[0]  # a section that is at odds with itself names the key that is meant
        if (*key, part) in self.fields:
            key = (*key, part)
        name = dotted(self._field(key)) or ".".join(map(str, key))
        return self.raising(": ".join(filter(None, (self.where(key), name, message))))

    def warning(self, field: FieldPath, why: str) -> str:
        """What to tell of a field that nothing acts on."""
        return f"{self._where(field)}: {dotted(field)}: {why}"

    def _where(self, field: FieldPath) -> str:
        while field and field not in self.places:
            field = field[:-1]
        place = self.places.get(field, "")
        return f"{self.path}:{place}" if place else str(self.path)

    def _field(self, key: KeyPath) -> FieldPath:
        while key and key not in self.fields:
            key = key[:-1]
        return self.fields.get(key, ())


def dotted(field: FieldPath) -> str:
    """A field as people write it: dynamic_batching.preferred_batch_size."""
    return ".".join(part for part in field if isinstance(part, str))


def config_path(folder: Path) -> Path:
    """The file that configures the model in `folder`; model.yaml's path where there's none."""
    own, tritons = folder / CONFIG_NAME, folder / PBTXT_NAME
    return tritons if tritons.exists() and not own.exists() else own


def config_document(folder: Path) -> Document:
    """What that file says, in model.yaml's words. Raises ModelDefect."""
    path = config_path(folder)
    if path.name == PBTXT_NAME:
        return _triton_document(path)[0]
    return read_yaml(path, ModelDefect) if path.exists() else Document(path, {}, {}, ModelDefect)


def _triton_document(path: Path) -> tuple[TritonDocument, Translated]:
    message, places = read_pbtxt(path)
    found = translate(message)
    return TritonDocument(path, found.values, {}, ModelDefect, found.fields, places), found


def read_model_config(folder: Path, over: Values = NOTHING) -> ModelConfig:
    """The configuration of a repository entry, all defaults where no file says anything; what `over` says wins.

    Raises ModelDefect with file, line and key."""
    document = config_document(folder)
    if over:
        document.data.update(laid_over(document.data, over))
    refuse_not_built(document)
    config = document.read_as(ModelConfig)
    if config.name not in (None, folder.name):
        raise document.error(("name",), f"is {config.name!r}, but the folder, whose name clients ask for, is {folder.name!r}")
    return config


def laid_over(values: Values, over: Values) -> dict[str, Any]:
    """`values` with those of `over` in their place, section by section; lists are replaced whole."""
    return {**values, **{name: laid_over(values[name], said) if _both(values.get(name), said) else said for name, said in over.items()}}


def _both(one: object, other: object) -> bool:
    return isinstance(one, Mapping) and isinstance(other, Mapping)


def said_wrong(folder: Path, key: KeyPath, message: str) -> ModelDefect:
    """The error for something in the configuration of `folder` that only shows beside the model itself: with file, line and key."""
    return ModelDefect(str(config_document(folder).error(key, message)))


def passed_over(folder: Path) -> tuple[str, ...]:
    """A warning for each thing that a config.pbtxt asks for and nothing here acts on."""
    path = config_path(folder)
    if path.name != PBTXT_NAME:
        return ()
    document, found = _triton_document(path)
    return tuple(document.warning(field, why) for field, why in found.ignored)


def override_of(text: str) -> Values:
    """What a Triton ModelConfig as JSON says, in model.yaml's words. Quoted numbers are numbers, as protobuf has it.

    Raises InvalidRequest, which names the field."""
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise InvalidRequest(f"config: expected a JSON object, got {type(given).__name__}")
        message = ParseDict(given, TritonConfig(), descriptor_pool=POOL)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"config: not JSON: {error}") from error
    except ParseError as error:
        raise InvalidRequest(f"config: not a ModelConfig: {error}") from error
    found = translate(message)
    document = TritonDocument(OVERRIDE, found.values, {}, InvalidRequest, found.fields, {})
    refuse_not_built(document)
    document.read_as(ModelConfig)
    return found.values
