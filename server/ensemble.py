"""Ensembles: several models behind one name, their tensors handed on by reference. `plan` is pure; Ensemble runs one request's steps.

A step starts as soon as all that it takes is there, so that steps run beside each other where the graph allows it. What a step is and which
version answers it is decided behind the callable that it's started with (dataplane.step): its queue, its batches, its figures are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeAlias

from server.engine.admission import Terms, fit
from server.errors import InvalidRequest, ModelDefect, TidegateError
from server.messages import BatchFacts, CancelHandle, InferRequest, InferResponse, Layout, ModelKey, OnResponse, RequestedOutput
from server.metrics.figures import Figures
from server.repository.declare.sections import Step
from server.router.table import Front
from server.tensors import Tensor, TensorSpec, dtype_of
from server.validation import nearest

PLATFORM = "ensemble"
KNOWN_LAYOUTS = 256

Start: TypeAlias = Callable[[InferRequest, OnResponse], CancelHandle]
"""Runs a step's request, as dataplane.step does."""
Specs: TypeAlias = Mapping[str, TensorSpec]


class _Everyone(frozenset[str]):
    """All tenants are known: which of them has a share is for the parts to say, each by its own model.yaml."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps that fit together. `inputs` and `outputs` are the ensemble's; `max_rows` is its parts' least, 0 where one is unbatched."""

    steps: tuple[Step, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int


def plan(steps: Sequence[Step], parts: Sequence[Front], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Plan:
    """What these steps over these parts come to; `inputs` and `outputs` as model.yaml declares them, without any: what no step makes, and
    what none takes. Raises ModelDefect that names the step, the tensor, what was expected and what was found."""
    graph = _Graph(steps, parts)
    taken, made = graph.taken(), graph.made()
    sources = {tensor: spec for tensor, (spec, _) in made.items()}
    inputs = inputs or tuple(_named(spec, tensor) for tensor, (spec, _) in taken.items() if tensor not in made)
    for spec in inputs:
        if spec.name in made:
            raise ModelDefect(f"input {spec.name!r} of the ensemble is also made by {made[spec.name][1]}")
        sources[spec.name] = spec
    for tensor, spec, where in graph.uses():
        if tensor not in sources:
            raise ModelDefect(f"{where}: tensor {tensor!r} is no input of the ensemble and made by no step{nearest(tensor, sources)}")
        _must_fit(sources[tensor], spec, f"{where}: tensor {tensor!r}")
    outputs = outputs or tuple(_named(spec, tensor) for tensor, (spec, _) in made.items() if tensor not in taken)
    for spec in outputs:
        if spec.name not in made:
            raise ModelDefect(f"output {spec.name!r} of the ensemble is made by no step{nearest(spec.name, made)}")
        _must_fit(made[spec.name][0], spec, f"output {spec.name!r} of the ensemble")
    graph.check_order({spec.name for spec in inputs})
    rows = [part.max_rows for part in parts]
    return Plan(tuple(steps), tuple(inputs), tuple(outputs), min(rows))


@dataclass(frozen=True, slots=True)
class _Graph:
    steps: Sequence[Step]
    parts: Sequence[Front]

    def _each(self) -> Iterator[tuple[str, Step, Front]]:
        for number, (step, part) in enumerate(zip(self.steps, self.parts, strict=True), 1):
            yield f"step {number} (model {step.model!r})", step, part

    def uses(self) -> Iterator[tuple[str, TensorSpec, str]]:
        """Each input of each step: the ensemble's tensor, the part's input, and where that is said."""
        for where, step, part in self._each():
            specs = {spec.name: spec for spec in part.inputs}
            missing = [spec.name for spec in part.inputs if spec.name not in step.inputs and not spec.optional]
            if missing:
                raise ModelDefect(f"{where}: its input {missing[0]!r} is given by no tensor")
            for name, tensor in step.inputs.items():
                if name not in specs:
                    raise ModelDefect(f"{where}: it has no input {name!r}{nearest(name, specs)}")
                yield tensor, specs[name], f"{where}, input {name!r}"

    def taken(self) -> dict[str, tuple[TensorSpec, str]]:
        """The ensemble's tensors that steps take, with the first part's input that does."""
        taken: dict[str, tuple[TensorSpec, str]] = {}
        for tensor, spec, where in self.uses():
            taken.setdefault(tensor, (spec, where))
        return taken

    def made(self) -> dict[str, tuple[TensorSpec, str]]:
        """The ensemble's tensors that steps make."""
        made: dict[str, tuple[TensorSpec, str]] = {}
        for where, step, part in self._each():
            specs = {spec.name: spec for spec in part.outputs}
            for name, tensor in step.outputs.items():
                if name not in specs:
                    raise ModelDefect(f"{where}: it has no output {name!r}{nearest(name, specs)}")
                if tensor in made:
                    raise ModelDefect(f"{where}: tensor {tensor!r} is made by {made[tensor][1]} already")
                made[tensor] = specs[name], where
        return made

    def check_order(self, there: set[str]) -> None:
        """Raises ModelDefect where steps wait for each other."""
        waiting = list(self.steps)
        while waiting:
            able = [step for step in waiting if there.issuperset(step.inputs.values())]
            if not able:
                raise ModelDefect(f"the steps of {', '.join(repr(step.model) for step in waiting)} wait for each other's tensors")
            waiting = [step for step in waiting if step not in able]
            there |= {tensor for step in able for tensor in step.outputs.values()}


def _named(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, spec.datatype, spec.shape, spec.batch_axis, labels=spec.labels)


def _must_fit(source: TensorSpec, target: TensorSpec, where: str) -> None:
    """Raises ModelDefect where what comes can't be what is taken. An axis that varies may be anything; the run will say."""
    if source.datatype != target.datatype:
        raise ModelDefect(f"{where} must be {target.datatype}, but what is given is {source.datatype}")
    alike = len(source.shape) == len(target.shape) and all(
        -1 in (one, other) or one == other for one, other in zip(source.shape, target.shape, strict=True)
    )
    if not alike:
        raise ModelDefect(f"{where} must have the shape {list(target.shape)}, but what is given has {list(source.shape)}")


class Ensemble:
    """What answers for an ensemble. See server.router.table.Front."""

    def __init__(self, key: ModelKey, plan: Plan, figures: Figures, start: Start) -> None:
        self.key = key
        self.inputs, self.outputs, self.max_rows = plan.inputs, plan.outputs, plan.max_rows
        self.figures = figures
        self.terms = Terms(tenants=_Everyone(), priorities=1 << 31)
        self.running = 0
        self.start = start
        self._steps = plan.steps
        self._output_names = [spec.name for spec in plan.outputs]
        self._layouts: dict[tuple[tuple[str, str, tuple[int, ...]], ...], Layout] = {}

    def submit(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        """Start the steps. Raises InvalidRequest where the request doesn't fit the ensemble."""
        request.rows, _, request.length, _ = fit(request.layout, self.key.name, self.inputs, self.max_rows)
        for output in request.outputs:
            if output.name not in self._output_names:
                raise InvalidRequest(
                    f"unexpected inference output '{output.name}' for model '{self.key.name}'. "
                    f"The model's outputs are: {sorted(self._output_names)}"
                )
        request.queued = monotonic()
        wanted = [output.name for output in request.outputs] or self._output_names
        return _Run(self, request, on_response, wanted, self._needed(wanted)).go()

    def _needed(self, wanted: Sequence[str]) -> list[int]:
        """The steps without which `wanted` can't be made."""
        tensors, needed = set(wanted), set[int]()
        for _ in self._steps:
            for number, step in enumerate(self._steps):
                if tensors.intersection(step.outputs.values()):
                    needed.add(number)
                    tensors |= set(step.inputs.values())
        return sorted(needed)

    def step_request(self, number: int, request: InferRequest, tensors: Mapping[str, Tensor]) -> InferRequest:
        """A step's request on behalf of `request`: its deadline, priority, tenant and trace are the whole's."""
        step = self._steps[number]
        inputs = {name: tensors[tensor] for name, tensor in step.inputs.items() if tensor in tensors}
        return InferRequest(
            step.model,
            inputs,
            self._layout(inputs),
            step.version,
            request.id,
            tuple(RequestedOutput(name) for name in step.outputs),
            principal=request.principal,
            trace=request.trace,
            received=monotonic(),
            deadline=request.deadline,
            priority=request.priority,
            tenant=request.tenant,
        )

    def _layout(self, inputs: Mapping[str, Tensor]) -> Layout:
        """The same Layout for the same tensors: engines know a layout by identity."""
        key = tuple((name, dtype_of(array).name, array.shape) for name, array in inputs.items())
        known = self._layouts.get(key)
        if known is None:
            if len(self._layouts) >= KNOWN_LAYOUTS:
                self._layouts.clear()
            known = self._layouts[key] = Layout(key)
        return known

    def step(self, number: int) -> Step:
        """Step `number` of the plan, from 0."""
        return self._steps[number]


class _Run:
    """One request on its way through the steps; the handle that cancels it."""

    __slots__ = ("_ensemble", "_handles", "_on_response", "_over", "_request", "_tensors", "_waiting", "_wanted")

    def __init__(
        self, ensemble: Ensemble, request: InferRequest, on_response: OnResponse, wanted: Sequence[str], needed: Sequence[int]
    ) -> None:
        self._ensemble = ensemble
        self._request = request
        self._on_response = on_response
        self._wanted = wanted
        self._waiting = set(needed)
        self._tensors: dict[str, Tensor] = dict(request.inputs)
        self._handles: dict[int, CancelHandle] = {}
        self._over = False

    def go(self) -> _Run:
        self._ensemble.running += 1
        self._advance()
        return self

    def cancel(self) -> None:
        """Cancel the steps in hand and start no more."""
        self._end()

    def _end(self) -> bool:
        """Whether this was the end: it comes once."""
        if self._over:
            return False
        self._over = True
        self._ensemble.running -= 1
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle.cancel()
        return True

    def _advance(self) -> None:
        """Start what can be started. An input that may be left out and was is there as soon as it can't come any more."""
        ensemble = self._ensemble
        coming = {tensor for number in (*self._waiting, *self._handles) for tensor in ensemble.step(number).outputs.values()}
        for number in sorted(self._waiting):
            if self._over:
                return
            if any(tensor not in self._tensors and tensor in coming for tensor in ensemble.step(number).inputs.values()):
                continue
            self._waiting.discard(number)
            self._handles[number] = _STARTING
            handle = ensemble.start(ensemble.step_request(number, self._request, self._tensors), partial(self._answered, number))
            if self._over:
                handle.cancel()
            elif number in self._handles:
                self._handles[number] = handle

    def _answered(self, number: int, response: InferResponse, final: bool) -> None:
        if self._over or not final:
            return
        step = self._ensemble.step(number)
        del self._handles[number]
        if response.error is not None:
            self._fail(number, response.error)
            return
        for name, tensor in step.outputs.items():
            self._tensors[tensor] = response.outputs[name]
        if self._waiting:
            self._advance()
        elif not self._handles:
            self._finish()

    def _fail(self, number: int, error: TidegateError) -> None:
        if self._end():
            key = self._ensemble.key
            text = f"ensemble '{key.name}', step {number + 1} (model '{self._ensemble.step(number).model}'): {error}"
            self._on_response(InferResponse(key.name, key.version, self._request.id, error=_saying(error, text)), True)

    def _finish(self) -> None:
        if not self._end():
            return
        key, request, now = self._ensemble.key, self._request, monotonic()
        facts = BatchFacts(request.rows, 1, PLATFORM, key.precision, PLATFORM, request.queued, request.queued, now)
        self._ensemble.figures.batch(facts, 0.0, 0.0)
        outputs = {name: self._tensors[name] for name in self._wanted}
        self._on_response(InferResponse(key.name, key.version, request.id, outputs, batch=facts), True)


class _Starting:
    """Stands for a step whose own handle isn't there yet: it may be answered before."""

    def cancel(self) -> None:
        """Its handle is cancelled when it comes."""


_STARTING = _Starting()


def _saying(error: TidegateError, text: str) -> TidegateError:
    """An error of the same kind, limits and times to come back, with another text."""
    same = type(error).__new__(type(error), text)
    same.__dict__.update(error.__dict__)
    same.__cause__ = error
    return same
