"""What a model's requests are shared out by while they are: its split, where a request's sticky key stands, who counts what comes of it.
Read in the hot path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from server.errors import TidegateError
from server.messages import CancelHandle, InferRequest, InferResponse, OnResponse
from server.repository.declare.routing import Sticky, StickyKind
from server.router.live.shadow import Shadow
from server.router.live.tally import Tally
from server.router.rules import RANDOMISED, Split

Submit: TypeAlias = Callable[[InferRequest, OnResponse], CancelHandle]


class Traffic:
    """Of one model. It's there only for a model whose requests are shared out or copied. `tally` counts for an experiment, `shadow` copies
    requests to another version; None where there's none."""

    __slots__ = ("rules", "shadow", "sticky", "tally")

    def __init__(self, rules: Split | None, sticky: Sticky | None, tally: Tally | None = None, shadow: Shadow | None = None) -> None:
        self.rules = rules
        self.sticky = sticky
        self.tally = tally
        self.shadow = shadow

    @property
    def header(self) -> str:
        """The header that a request's key stands in, "" where it isn't a header."""
        return self.sticky.name if self.sticky is not None and self.sticky.kind is StickyKind.HEADER else ""

    def key(self, request: InferRequest) -> str:
        """A request's sticky key, empty where it has none."""
        sticky = self.sticky
        return "" if sticky is None else sticky.key(request.id, request.parameters, request.sticky)

    def submit(self, request: InferRequest, reason: str, submit: Submit, on_response: OnResponse) -> CancelHandle:
        """Have a request run that was given to a version for this reason, counted where chance alone chose it. Raises as `submit`."""
        tally = self.tally
        if self.shadow is not None:
            on_response = _shadowed(self.shadow, request, on_response)
        if tally is None or reason not in RANDOMISED:
            return submit(request, on_response)
        watch = tally.begin(request, request.version, on_response)
        try:
            watch.handle = submit(request, watch)
        except TidegateError:
            watch.refused()
            raise
        return watch


def _shadowed(shadow: Shadow, request: InferRequest, on_response: OnResponse) -> OnResponse:
    """`on_response`, and then the shadow's turn: with the outputs as the version gave them."""

    def answered(response: InferResponse, final: bool) -> None:
        outputs, failed = response.outputs, response.error is not None
        on_response(response, final)
        if final and not failed:
            shadow.offer(request, outputs)

    return answered
