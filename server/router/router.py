"""The router says which version answers a request, and why: the version in the URL, else what its model's traffic is split by (rules), else
the highest that is ready."""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import NamedTuple

from server.errors import ModelUnavailable, NotFound
from server.messages import InferRequest
from server.metrics.figures import Figures
from server.protocol.head import MAX_NAME
from server.router.precise import precise
from server.router.rules import choose
from server.router.table import Front, ServedVersion, ServingTable
from server.router.traffic import Traffic


class Route(NamedTuple):
    """What answers, its version and the reason (rules.RouteReason)."""

    engine: Front
    version: str
    reason: str


class Router:
    """`traffic` has the models whose requests are shared out: to be read by all and changed by `steer`. `on_steer` is called after that."""

    def __init__(self, table: ServingTable) -> None:
        self._table = table
        self.traffic: dict[str, Traffic] = {}
        self.on_steer: Callable[[], None] = lambda: None

    def steer(self, model: str, traffic: Traffic | None) -> None:
        """Share a model's requests out from now on, or no more."""
        if traffic is None:
            self.traffic.pop(model, None)
        else:
            self.traffic[model] = traffic
        self.on_steer()

    def route(self, model: str, version: str) -> Route:
        """Who answers. Raises NotFound for an unknown name or version, ModelUnavailable with the reason where it can't serve."""
        entry = self._table.version(model, version) if version else self._table.default(model)
        if entry is not None:
            front = entry.front or entry.engine
            if front is not None:
                return Route(front, entry.version, "version" if version else "latest")
        raise self._refusal(model, version, entry)

    def headers(self) -> dict[str, str]:
        """By model: the header that its requests' sticky key stands in."""
        return {model: traffic.header for model, traffic in self.traffic.items() if traffic.header}

    def share_out(self, request: InferRequest, traffic: Traffic) -> Route:
        """Who answers a request that names no version, of a model whose requests are shared out: from here on it names one. Raises as
        `route` does."""
        model, table = request.model, self._table
        latest = table.default(model)
        request.sticky = key = traffic.key(request)
        choice = choose(traffic.rules, table.ready(model), "" if latest is None else latest.version, key, random())
        entry = table.version(model, choice.version)
        front = None if entry is None else entry.front or entry.engine
        if front is None:
            raise self._refusal(model, "", None)
        request.version = choice.version
        return Route(front, choice.version, choice.reason)

    def precise(self, request: InferRequest, route: Route) -> Route:
        """Who answers a request that asks for a precision. Raises InvalidRequest, ModelUnavailable."""
        entry = self._table.version(request.model, route.version)
        if entry is None:
            raise self._refusal(request.model, route.version, None)
        front, reason = precise(entry, request.parameters)
        return Route(front, route.version, reason)

    def figures_in(self, model: str, version: str, precision: str) -> Figures | None:
        """Where a request is counted that this precision answered, None where the version has none of it."""
        entry = self._table.version(model, version)
        variant = entry.variants.get(precision) if entry is not None else None
        return variant.figures if variant is not None else None

    def figures(self, model: str, version: str) -> Figures | None:
        """Where a request of this model and version is counted, None where it never reached a version."""
        entry = self._table.version(model, version) if version else self._table.default(model)
        front = None if entry is None else entry.front or entry.engine or (entry.leaving.serving if entry.leaving is not None else None)
        return None if front is None else front.figures

    def entry(self, model: str, version: str) -> ServedVersion:
        """The ready version that metadata is asked of. Raises as `route` does."""
        entry = self._table.version(model, version) if version else self._table.default(model)
        if entry is not None and entry.serving is not None:
            return entry
        raise self._refusal(model, version, entry)

    def entries(self, model: str, version: str) -> list[ServedVersion]:
        """What is ready: of one version, of a model where `version` is empty, of all where `model` is too. Raises as `route` does where
        that would be nothing of what was named."""
        ready = [entry for entry in self._table if entry.serving is not None]
        if not model:
            return ready
        first = self.entry(model, version)
        return [first] if version else [entry for entry in ready if entry.model == model]

    def ready_versions(self, model: str) -> list[str]:
        """The versions of a model that serve, lowest first."""
        return sorted((entry.version for entry in self._table.versions(model) if entry.serving is not None), key=int)

    def _refusal(self, model: str, version: str, entry: ServedVersion | None) -> NotFound | ModelUnavailable:
        known = self._table.versions(model)
        if len(model) > MAX_NAME or len(version) > MAX_NAME:
            return NotFound(f"Request for unknown model: names and versions have at most {MAX_NAME} characters, got {len(model + version)}")
        if not known:
            return NotFound(f"Request for unknown model: '{model}' is not found")
        if version and entry is None:
            return NotFound(f"Request for unknown model: '{model}' version {version} is not found")
        entry = entry or known[-1]
        return ModelUnavailable(
            f"Request for unknown model: '{model}' version {entry.version} is not at ready state: {entry.state}"
            + (f" ({entry.reason})" if entry.reason else "")
        )
