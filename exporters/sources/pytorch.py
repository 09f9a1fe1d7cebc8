"""A trained PyTorch model in: runs trace_child in a process of its own and reads what it wrote.

This process never imports torch, nor a line of the user's code. What comes back are files in a folder that the caller owns.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.plan import DYNAMO_OPSET, OPSET, ExportError, Plan
from server.repository.manifest import Pruning
from server.tensors import TensorSpec, dtype_of

CHILD = Path(__file__).with_name("trace_child.py")
POLL_SECONDS = 0.05
TAIL_LINES = 8
FULL = 1 << 20
"""Bytes: with less room left, a child that died did so for want of it."""

STAGES = {
    "start": "start PyTorch",
    "import": "import the module",
    "factory": "make the model",
    "weights": "load the weights",
    "example": "read the example",
    "prune": "prune it",
    "forward": "run the model",
    "trace": "trace it to ONNX",
    "samples": "write the parity samples",
    "calibration": "make the calibration rows",
}
"""The child's stages, in order, in the words of messages."""


UNSUPPORTED = "; write that part of forward with other operators, or try --exporter dynamo, which knows more of them"


@dataclass(frozen=True, slots=True)
class Sample:
    """One batch and PyTorch's own answer to it; `rows` is 1 for a model that isn't batched."""

    rows: int
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced model: the ONNX file, its tensors as PyTorch showed them, and where the parity samples lie.

    `unbatched` says why rows can't share a run, None where they can. `warnings` are the tracer's: places of the user's code
    where a Python value was taken for a constant. `code` is the file that holds the factory. `key` is what the trace may be kept by,
    "" where it mayn't; `reused` says that it was.
    """

    file: Path
    samples_file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows: tuple[int, ...]
    unbatched: str | None
    warnings: tuple[str, ...]
    code: Path | None
    torch: str
    calibration_batches: int = 0
    calibration_origin: str = "made from the example"
    pruned: Pruning | None = None
    key: str = ""
    reused: bool = False

    def calibration(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The rows to calibrate on that the child left, batch by batch; none is one of the parity samples'."""
        with np.load(self.samples_file.with_name("calibration.npz"), allow_pickle=False) as arrays:
            for batch in range(self.calibration_batches):
                yield {spec.name: arrays[f"{batch}.in.{index}"] for index, spec in enumerate(self.inputs)}

    def samples(self) -> Iterator[Sample]:
        """The parity samples, one at a time."""
        with np.load(self.samples_file, allow_pickle=False) as arrays:
            for run, rows in enumerate(self.rows):
                inputs = {spec.name: arrays[f"{run}.in.{index}"] for index, spec in enumerate(self.inputs)}
                outputs = {spec.name: arrays[f"{run}.out.{index}"] for index, spec in enumerate(self.outputs)}
                yield Sample(rows, inputs, outputs)


def trace(plan: Plan, folder: Path, on_stage: Callable[[str], None], finished: Path | None = None) -> Traced:
    """Trace plan.model into `folder`, which must be empty; `on_stage` is told in words what the child does. One that's in `finished`
    already, by the hash of all that it comes from, is used again.

    Raises ExportError: which stage failed, why, and where in the user's code. The child is gone when this returns or raises.
    """
    (folder / "job.json").write_text(json.dumps(_job(plan, finished)))
    code = _run_child(plan, folder, on_stage)
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        raise ExportError(_died(plan, folder, code)) from None
    if not result["ok"]:
        where = f" ({result['where']})" if result["where"] else ""
        advice = UNSUPPORTED if "UnsupportedOperatorError" in result["message"] else ""
        raise ExportError(f"{plan.model.label}: couldn't {STAGES[result['stage']]}: {result['message']}{where}{advice}")
    return _traced(plan, folder, result)


KEPT = ("model.onnx", "model.onnx.data", "parity.npz", "calibration.npz", "result.json")
"""The files of a finished trace."""


def _job(plan: Plan, finished: Path | None) -> dict[str, Any]:
    model = plan.model
    return {
        "file": str(model.file) if model.file else None,
        "module": model.module,
        "onnx": str(model.onnx) if model.onnx else None,
        "program": str(model.program) if model.program else None,
        "finished": str(finished) if finished else None,
        "prune": plan.prune,
        "eval": str(plan.evaluation.resolve()) if plan.evaluation else None,
        "hub": str(model.hub) if model.hub else None,
        "factory": model.factory,
        "folders": [str(folder) for folder in model.folders],
        "weights": str(plan.weights.resolve()) if plan.weights else None,
        "example": str(plan.example.resolve()) if plan.example else None,
        "dynamic": plan.dynamic and {name: dict(axes) for name, axes in plan.dynamic.items()},
        "output_names": plan.output_names,
        "seed": plan.seed,
        "opset": DYNAMO_OPSET if plan.exporter == "dynamo" else OPSET,
        "dynamo": plan.exporter == "dynamo",
        "name": plan.name,
        "calibrate": plan.calibrates and (plan.calibration is None or plan.calibration.is_dir()),
        "calibration": str(plan.calibration.resolve()) if plan.calibration and plan.calibration.is_dir() else None,
    }


def _run_child(plan: Plan, folder: Path, on_stage: Callable[[str], None]) -> int:
    """Run the child to its end and return its exit status; past the time limit, or when this is interrupted, it is killed."""
    command = [sys.executable, "-P", "-X", "faulthandler", str(CHILD), str(folder)]
    deadline = time.monotonic() + plan.timeout
    stage = ""
    with (folder / "output.txt").open("wb") as output:
        # A process group of its own: Ctrl-C comes here only, and what the user's code started can be killed with it.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            while (code := child.poll()) is None:
                if (now := _stage(folder)) != stage:
                    stage = now
                    on_stage(STAGES[stage])
                if time.monotonic() > deadline:
                    raise ExportError(_late(plan, folder))
                time.sleep(POLL_SECONDS)
        finally:
            if child.poll() is None:
                _kill_group(child)
    return code


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _stage(folder: Path) -> str:
    """What the child does now; a file that is being written counts as the first stage."""
    try:
        stage = (folder / "stage.txt").read_text()
    except OSError:
        return "start"
    return stage if stage in STAGES else "start"


def _late(plan: Plan, folder: Path) -> str:
    label, doing = plan.model.label, STAGES[_stage(folder)]
    return f"{label}: stopped after {plan.timeout:g} s, trying to {doing}; --timeout SECONDS gives it more{_tail(folder)}"


def _died(plan: Plan, folder: Path, code: int) -> str:
    if code < 0:
        end = f"was killed by {signal.Signals(-code).name}"
        end += " (out of memory?)" if code == -signal.SIGKILL else ""
    else:
        end = f"ended its process with status {code}"
    free = shutil.disk_usage(folder).free
    full = f"; {folder.parent.parent} is full: TMPDIR names another place for temporary files" if free < FULL else ""
    return f"{plan.model.label}: {end}, trying to {STAGES[_stage(folder)]}{full}{_tail(folder)}"


def _tail(folder: Path) -> str:
    """The last lines that the child printed, for a message."""
    lines = (folder / "output.txt").read_bytes()[-4096:].decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
    return "; its last output:\n" + "\n".join(f"  | {line[:160]}" for line in lines) if lines else ""


def _traced(plan: Plan, folder: Path, result: dict[str, Any]) -> Traced:
    code = Path(result["code"]) if result["code"] else None
    return Traced(
        file=folder / "model.onnx",
        samples_file=folder / "parity.npz",
        inputs=tuple(_spec(plan, tensor) for tensor in result["inputs"]),
        outputs=tuple(_spec(plan, tensor) for tensor in result["outputs"]),
        rows=tuple(result["rows"]),
        unbatched=result["unbatched"],
        warnings=tuple(result["warnings"]),
        code=code if code and code.is_file() else None,
        torch=result["torch"],
        calibration_batches=result.get("calibration", 0),
        calibration_origin=result.get("calibration_origin", ""),
        pruned=Pruning(**result["pruned"]) if result.get("pruned") else None,
        key=result.get("key", ""),
        reused=result.get("reused", False),
    )


def _spec(plan: Plan, tensor: dict[str, Any]) -> TensorSpec:
    try:
        datatype = dtype_of(np.empty(0, tensor["dtype"])).name
    except (KeyError, TypeError):
        raise ExportError(f"{plan.model.label}: tensor {tensor['name']!r} holds {tensor['dtype']}, which can't be served") from None
    most = tensor["max_shape"]
    return TensorSpec(tensor["name"], datatype, tuple(tensor["shape"]), tensor["batch_axis"], tuple(most) if most else None)
