"""The seam between the runner and a protocol: a request is encoded beforehand, then asked, and an answer never raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from loadtests.asking import ModelFacts, Question
from loadtests.samples import Outcome, RunFacts

MOST_WHY = 160  # characters of a refusal that are kept

Prepared: TypeAlias = Any
"""A request as a client sends it; only the client that made it looks into it."""


class Answer(NamedTuple):
    """What became of one request. `run` is there where the answer told, `why` where there's no answer."""

    outcome: Outcome
    run: RunFacts | None = None
    why: str = ""


class Client(Protocol):
    """Speaks one protocol with one server."""

    async def facts(self, model: str, version: str) -> ModelFacts:
        """What the model takes. Raises ConfigError for one that isn't there, and for a server that can't be reached."""
        ...

    def prepare(self, question: Question, explain: bool, headers: Mapping[str, str]) -> Prepared:
        """Encode a request; `explain` asks for the facts of its run."""
        ...

    async def ask(self, prepared: Prepared, headers: Mapping[str, str]) -> Answer:
        """Send it and wait for the answer; `headers` go on top of the prepared ones."""
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...


def run_facts(parameters: Mapping[str, Any]) -> RunFacts | None:
    """What explain put into an answer's parameters, None where it's not there."""
    try:
        return RunFacts(int(parameters["batch_rows"]), float(parameters["queue_us"]) / 1e6, float(parameters["compute_us"]) / 1e6)
    except (KeyError, TypeError, ValueError):
        return None


def tenant_headers(tenant: str) -> dict[str, str]:
    """The header that names a tenant."""
    return {"x-tidegate-tenant": tenant} if tenant else {}
