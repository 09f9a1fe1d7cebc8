"""The one door for inference: route, submit, account. Every edge calls it; it never raises, its answers come by callback.

It doesn't know how a request came in or how an answer goes out; the edge reports when an answer is ready to leave (`done`), because only
then are its figures whole.
"""

from __future__ import annotations

from time import monotonic

from server.errors import InvalidRequest, TidegateError
from server.logs import Journal
from server.messages import CancelHandle, InferRequest, InferResponse, OnResponse
from server.metrics.recorder import Recorder
from server.router.router import Router


class Settled:
    """The handle of a request that was answered before `infer` returned."""

    def cancel(self) -> None:
        """Nothing is left to cancel."""


SETTLED = Settled()


class DataPlane:
    def __init__(self, router: Router, recorder: Recorder, journal: Journal) -> None:
        self._router = router
        self._recorder = recorder
        self._journal = journal

    def infer(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        """Admit and run a request. `on_response` gets the answer or the error, in the loop, perhaps before this returns."""
        try:
            route = self._router.route(request.model, request.version)
            if (timeout := request.parameters.get("timeout")) is not None:
                deadline = request.received + _timeout(timeout)
                request.deadline = deadline if request.deadline is None else min(deadline, request.deadline)
            return route.engine.submit(request, on_response)
        except TidegateError as error:
            on_response(InferResponse(request.model, request.version, request.id, error=error), True)
            return SETTLED

    def done(self, request: InferRequest, response: InferResponse, encode_seconds: float) -> None:
        """An answer is ready to leave: count it, and log it if it failed or was slow."""
        total = monotonic() - request.received
        error, batch = response.error, response.batch
        figures = self._router.figures(response.model, response.version)
        if figures is None:
            self._recorder.unrouted(error.reason if error is not None else "unloaded")
        elif error is not None or batch is None:
            figures.failed(error.reason if error is not None else "internal")
        else:
            figures.answered(total, batch.cut - request.queued, request.decode_seconds, encode_seconds)
        self._journal.finished(request, response, total, encode_seconds)


def _timeout(value: str | int | float | bool) -> float:
    """Seconds of the request parameter `timeout`, which is in microseconds. Raises InvalidRequest."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter 'timeout' must be a whole number of microseconds, got {value!r}")
    return value * 1e-6 if value else float("inf")
