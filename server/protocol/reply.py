"""How a client wants its answer: read from the request, kept by the edge, used to encode. Nothing of it reaches the engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NO_OUTPUTS: Mapping[str, bool] = MappingProxyType({})


class Reply(NamedTuple):
    """A named tuple, since one is made for every request that carries an id.

    `id` is echoed. `binary` holds every output that the request lists: true where its `binary_data` is, false otherwise.
    `binary_default` is the request's `binary_data_output`; it speaks for outputs that aren't listed.
    """

    id: str = ""
    binary_default: bool = False
    binary: Mapping[str, bool] = NO_OUTPUTS
