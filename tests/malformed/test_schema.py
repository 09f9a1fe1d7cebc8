"""What the OpenAPI document says one may ask, asked by schemathesis: whatever it makes up, nothing answers 5xx but 501 and 503."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.malformed.conftest import Served

SAID = frozenset((501, 503))
"""5xx that are said on purpose: not supported, not now."""


def test_nothing_fails(served: Served) -> None:
    """Every operation of the document, with bodies, names and query strings that fit it and that don't."""
    address = f"http://{served.http}"
    schema = schemathesis.openapi.from_dict(httpx.get(f"{address}/openapi.json").json())
    schema.config.update(base_url=address)
    found: list[Any] = [operation.ok() for operation in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(found) >= 15
    for operation in found:
        ask(operation, GenerationMode.POSITIVE)
        with suppress(Unsatisfiable):  # one without parameters and body can't be asked wrongly
            ask(operation, GenerationMode.NEGATIVE)
    assert served.process.is_running()


def ask(operation: Any, mode: GenerationMode) -> None:
    """Some requests of one operation."""

    @settings(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def hold(case: Any) -> None:
        answer = case.call()
        assert answer.status_code < 500 or answer.status_code in SAID, (case, answer.text)

    hold()
