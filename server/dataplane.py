"""The one door for inference: route, submit, account. Every edge calls it; it never raises, its answers come by callback.

It doesn't know how a request came in or how an answer goes out; the edge reports when an answer is ready to leave (`done`), because only
then are its figures whole.
"""

from __future__ import annotations

from functools import partial
from time import monotonic

from server.classification import classified, wants_classes
from server.engine.admission import admit
from server.errors import TidegateError
from server.explain import explained
from server.lending import Lending
from server.logs import Journal
from server.messages import NO_PARAMETERS, CancelHandle, InferRequest, InferResponse, OnResponse
from server.metrics.recorder import Recorder
from server.protocol.binary_codec import Takes
from server.recording import Recording
from server.router.precise import PRECISION
from server.router.router import Router
from server.tracing.tracer import Tracer


class Settled:
    """The handle of a request that was answered before `infer` returned."""

    def cancel(self) -> None:
        """Nothing is left to cancel."""


SETTLED = Settled()


class DataPlane:
    """`lending` reads and writes tensors in clients' shared memory. `tracer` is None where nothing can be traced."""

    def __init__(
        self,
        router: Router,
        recorder: Recorder,
        journal: Journal,
        lending: Lending,
        recording: Recording | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._router = router
        self._traffic = router.traffic
        self._recorder = recorder
        self._journal = journal
        self._lending = lending
        self._recording = recording
        self._tracer = tracer
        self._note = recorder.ring.arrival

    def infer(self, request: InferRequest, on_response: OnResponse, *, streamed: bool = False) -> CancelHandle:
        """Admit and run a request. `on_response` gets the answer or the error, in the loop, perhaps before this returns.

        `streamed`: whoever asks can take several answers. From a decoupled model they then get a Stream for a handle (engine.streams)."""
        if request.shared is not None:
            return self._lending.infer(request, request.shared, on_response, partial(self.infer, streamed=streamed))
        version = request.version
        try:
            traffic = None if version else self._traffic.get(request.model)
            if traffic is None:
                route = self._router.route(request.model, version)
            else:
                route = self._router.share_out(request, traffic)
            version = route.version
            if request.parameters is not NO_PARAMETERS and PRECISION in request.parameters:
                route = self._router.precise(request, route)
            admit(request, route.engine.terms)
            if request.explain:
                on_response = explained(request, route.reason, on_response)
            if request.outputs and wants_classes(request.outputs):
                on_response = classified(request, route.engine.outputs, on_response, batched=route.engine.max_rows > 0)
            submit = getattr(route.engine, "stream", route.engine.submit) if streamed else route.engine.submit
            if traffic is not None:
                return traffic.submit(request, route.reason, submit, on_response)
            return submit(request, on_response)
        except TidegateError as error:
            on_response(InferResponse(request.model, request.version, request.id, error=error), True)
            return SETTLED
        finally:
            if rows := request.rows:  # it fits the model: part of the load, also where it was refused
                deadline, received = request.deadline, request.received
                limit = None if deadline is None else deadline - received
                event = (received, request.model, version, rows, request.length, request.priority, request.tenant, limit)
                self._note(event)
                if self._recording is not None:
                    self._recording.arrived(event, request)

    def step(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        """Run and account a request that the server itself makes for a step of an ensemble. It has its whole's id, and no headers or
        parameters: where its model's traffic is shared out, it's drawn, or goes by its id where that is the sticky key."""

        def answered(response: InferResponse, final: bool) -> None:
            if final:
                request.tenant = ""  # counted once, for the whole
                self.done(request, response, 0.0)
            on_response(response, final)

        try:
            traffic = None if request.version else self._traffic.get(request.model)
            route = self._router.route(request.model, request.version) if traffic is None else self._router.share_out(request, traffic)
            engine = route.engine
            request.priority = 0 if request.priority > engine.terms.priorities else request.priority
            admit(request, engine.terms)
            if traffic is not None:
                return traffic.submit(request, route.reason, engine.submit, answered)
            return engine.submit(request, answered)
        except TidegateError as error:
            answered(InferResponse(request.model, request.version, request.id, error=error), True)
            return SETTLED

    def takes(self, model: str, version: str) -> Takes:
        """What a request for this model is made of, for those who build one: it names a version, unless that's still to be chosen. Raises
        NotFound or ModelUnavailable."""
        route = self._router.route(model, version)
        named = version if model in self._traffic else route.version
        return Takes(named, route.engine.inputs, route.engine.max_rows > 0)

    def done(self, request: InferRequest, response: InferResponse, encode_seconds: float) -> None:
        """An answer is ready to leave: count it, and log it if it failed or was slow."""
        total = monotonic() - request.received
        error, batch = response.error, response.batch
        figures = self._router.figures(response.model, response.version)
        if figures is None:
            self._recorder.unrouted(error.reason if error is not None else "unloaded")
        elif error is not None or batch is None:
            figures.failed(error.reason if error is not None else "internal", total)
        else:
            if batch.precision is not figures.key.precision:  # answered by another variant than the one that would now
                figures = self._router.figures_in(response.model, response.version, batch.precision) or figures
            figures.answered(total, batch.cut - request.queued, request.decode_seconds, encode_seconds)
        if request.tenant and figures is not None:  # else it's still as the client wrote it, which no label may be
            self._recorder.tenant(request.tenant, error.reason if error is not None else "")
        if self._tracer is not None:
            trace_id = self._tracer.finished(request, response, total, encode_seconds)
            if trace_id and error is None and figures is not None:
                figures.example(total, trace_id)
        self._journal.finished(request, response, total, encode_seconds)
