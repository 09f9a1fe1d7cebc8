"""Which precision answers a request that asks for one (parameters `precision`, `precision_fallback`). No other request comes here."""

from __future__ import annotations

from collections.abc import Mapping

from server.errors import InvalidRequest, ModelUnavailable, TidegateError
from server.messages import Scalar
from server.precision.variants import LOADED
from server.router.table import Front, ServedVersion
from server.validation import nearest

PRECISION, FALLBACK = "precision", "precision_fallback"
"""The parameters, and the reasons that explain gives where they decide."""


def precise(entry: ServedVersion, parameters: Mapping[str, Scalar]) -> tuple[Front, str]:
    """What answers in a version, and why: the precision that is asked for where it's loaded, else with `precision_fallback` the active one.

    Raises InvalidRequest for a precision that the version doesn't have, ModelUnavailable for one that isn't loaded now.
    """
    wanted, fallback = parameters[PRECISION], parameters.get(FALLBACK, False)
    for name, value, kind, what in ((PRECISION, wanted, str, "a string"), (FALLBACK, fallback, bool, "true or false")):
        if type(value) is not kind:
            raise InvalidRequest(f"parameter '{name}' must be {what}; got {value!r:.64}")
    active = entry.front or entry.engine
    if active is None:
        raise ModelUnavailable(f"model '{entry.model}' version {entry.version} is not at ready state: {entry.state}")
    found = _in(entry, str(wanted), active)
    if not isinstance(found, TidegateError):
        return found, PRECISION
    if fallback:
        return active, FALLBACK
    raise found


def _in(entry: ServedVersion, wanted: str, active: Front) -> Front | TidegateError:
    """What answers in this precision, or why nothing does."""
    where = f"model '{entry.model}' version {entry.version}"
    if not entry.variants:
        return InvalidRequest(f"parameter 'precision': {where} is an ensemble, which has none: its parts have")
    variant = entry.variants.get(wanted)
    if variant is None:
        known = ", ".join(entry.variants)
        return InvalidRequest(f"parameter 'precision': {where} has {known}, not {wanted[:32]!r}{nearest(wanted, entry.variants)}")
    if active.key.precision == wanted:
        return active
    served = variant.served
    front = None if served is None or variant.state not in LOADED else served.front or served.engine
    if front is None:
        state = f"{variant.state}: {variant.why}" if variant.why else str(variant.state)
        return ModelUnavailable(
            f"{where} can't answer in {wanted} now, it's {state}; with parameter 'precision_fallback' the active one does"
        )
    if front is active:
        return InvalidRequest(f"parameter 'precision': {where} is stateful: {active.key.precision} answers all its sequences now")
    return front
