"""Runs the user's model code and traces it to ONNX: a script in a process of its own that imports nothing of tidegate.

    python -P trace_child.py FOLDER      FOLDER/job.json says what; all that is written lies in FOLDER

The rules: the user's folder is first on the import path, so that a package of theirs called `server` or `exporters` is the one that
they get; the parts beside this file are members of a private package. Only files carry results (stage.txt while it runs, then
model.onnx, parity.npz, result.json), so that nothing that the user's code prints can be taken for one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "_tidegate_child"
"""The private name under which this folder is a package here."""


class StageError(Exception):
    """What the user has to be told: the stage, what went wrong, and where in their code (empty where it isn't their code)."""

    def __init__(self, stage: str, message: str, where: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.where = where


def own(name: str) -> ModuleType:
    """The module `name` beside this file, as a member of the private package, so that its relative imports work."""
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(Path(__file__).parent)]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")


def load_file(path: Path, name: str) -> ModuleType:
    """Run the file as the module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} isn't a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class ReusedError(Exception):
    """Not a failure: all that was left to do had been done before, and `result` is what it came to."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("reused")
        self.result = result


class Stages:
    """Which stage runs: written to a file, so that the parent can name it for a process that was killed."""

    def __init__(self, folder: Path, homes: tuple[Path, ...]) -> None:
        self._file = folder / "stage.txt"
        self._homes = homes

    @contextlib.contextmanager
    def enter(self, stage: str) -> Iterator[None]:
        """Any exception inside becomes a StageError of this stage."""
        self._file.write_text(stage)
        try:
            yield
        except (StageError, ReusedError):
            raise
        except SystemExit as error:
            raise StageError(stage, f"the code called exit({error.code!r})", self.place(error)) from error
        except BaseException as error:  # the user's code may raise anything, and all of it is told the same way
            raise StageError(stage, told(error), self.place(error)) from error

    def place(self, error: BaseException) -> str:
        """The innermost line of the user's code in the traceback, as `nets.py:12 in forward`."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if self.is_theirs(frame.filename)]
        return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""

    def sources(self) -> list[Path]:
        """The files of the user's code that was imported."""
        files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        return [Path(file) for file in files if file and self.is_theirs(file) and Path(file).is_file()]

    def is_theirs(self, filename: str) -> bool:
        path = Path(filename).resolve()
        ours = path.parent == Path(__file__).resolve().parent or "site-packages" in path.parts
        return not ours and any(path.is_relative_to(home) for home in self._homes)


def told(error: BaseException) -> str:
    """An exception in one paragraph: its type and the first lines of its text; our own refusals say all by themselves."""
    if type(error).__module__.startswith(PACKAGE):
        return str(error)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:4])
    return f"{type(error).__name__}: {text[:600]}" if text else type(error).__name__


def user_module(job: dict[str, Any]) -> ModuleType:
    """Import the module that holds the factory, with a command line of its own; a folder of weights is made into one."""
    if job["hub"]:
        made: ModuleType = own("trace_hub").module_of(Path(job["hub"]))
        return made
    if job["program"]:
        program: ModuleType = own("trace_state").program_module(Path(job["program"]))
        return program
    sys.argv = [job["file"] or job["module"]]
    if job["file"]:
        path = Path(job["file"])
        return load_file(path, path.stem)
    return importlib.import_module(job["module"])


def attribute(module: ModuleType, dotted: str) -> Any:
    """The factory that the job names."""
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            names = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
            raise StageError(
                "factory", f"there is no {dotted!r} in {module.__name__}; it has: {', '.join(names[:12]) or 'nothing to call'}"
            )
        found = getattr(found, part)
    return found


def declared(module: ModuleType, name: str) -> Any:
    """What the module's own function `name` (example, dynamic) answers, None where it has none."""
    function: Callable[[], Any] | None = getattr(module, name, None)
    return function() if callable(function) else None


def holds(job: dict[str, Any], module: ModuleType) -> bool:
    """Whether rows of the example are to be held back: only where none are given to calibrate on."""
    return job["calibrate"] and not job["calibration"] and not hasattr(module, "calibration")


def calibrate(module: ModuleType, study: Any, job: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the rows that precisions are calibrated on: a folder's, the module's own, else the example's or made from it."""
    calibrating = own("trace_calibration")
    if job["calibration"]:
        folder, preprocess = Path(job["calibration"]), getattr(module, "preprocess", None)
        rows = calibrating.from_folder(folder, preprocess, study.call.example, job["name"])
        batches, origin = calibrating.save_calibration(study, rows, 0, path, f"--calibration {folder.name}")
    else:
        given = declared(module, "calibration")
        rows = None if given is None else own("trace_state").as_arrays(given)
        batches, origin = calibrating.save_calibration(study, rows, job["seed"] + 1, path)
    return {"calibration": batches, "calibration_origin": origin}


def user_model(job: dict[str, Any], folder: Path, stages: Stages) -> tuple[ModuleType, Any, list[tuple[str, int, str]]]:
    """The user's module, what was learned of its model, and the tracer's warnings; model.onnx is written."""
    state, tracing, studying = own("trace_state"), own("trace_call"), own("trace_study")
    sys.path[:0] = job["folders"]
    with stages.enter("import"):
        module = user_module(job)
    with stages.enter("factory"):
        model = state.as_module(attribute(module, job["factory"]))
        state.check_float32(model)
    if job["weights"]:
        with stages.enter("weights"):
            state.load_weights(model, Path(job["weights"]))
    with stages.enter("example"):
        given = state.read_example(Path(job["example"])) if job["example"] else declared(module, "example")
        call = tracing.bind(model, state.as_arrays(given))
        axes = studying.checked_axes(job["dynamic"] or declared(module, "dynamic") or {}, call.example)
    with stages.enter("prune"):
        pruned = prune(job, call)
    with stages.enter("example"):
        key = reuse(job, folder, module, call, stages)
    with stages.enter("forward"):
        study = studying.study(call, axes, job["output_names"], job["seed"], holds(job, module))
        study.key, study.pruned = key, pruned
    with stages.enter("trace"):
        written = tracing.Written(folder / "model.onnx", job["opset"], job["dynamo"])
        caught = tracing.write_onnx(call, studying.traced_inputs(study), study.outputs, study.symbols(), written)
    return module, study, caught


def prune(job: dict[str, Any], call: Any) -> dict[str, Any] | None:
    """Take channels away, and say what that did to the answers and, on a labelled set, to their accuracy; None where none was asked."""
    if job["prune"] is None:
        return None
    state = own("trace_state")
    labelled = state.as_arrays(state.read_example(Path(job["eval"]))) if job["eval"] else None
    measure = functools.partial(own("trace_call").worth, call, labelled)
    before, right_before = measure()
    channels = state.prune_channels(call.traceable.model, job["prune"])
    after, right_after = measure()
    return {
        "share": job["prune"],
        "channels": sum(channels.values()),
        "layers": len(channels),
        "cosine_mean": own("trace_call").mean_cosine(before, after),
        "accuracy_before": right_before,
        "accuracy_after": right_after,
    }


def reuse(job: dict[str, Any], folder: Path, module: ModuleType, call: Any, stages: Stages) -> str:
    """What a trace of just this model with just this job is kept by, "" where none is. Raises ReusedError where there's one."""
    if not job["finished"] or job["calibration"]:
        return ""
    state = own("trace_state")
    arrays = dict(call.example)
    if job["calibrate"] and (given := declared(module, "calibration")) is not None:
        arrays |= {f"calibration.{name}": array for name, array in state.as_arrays(given).items()}
    files = [*stages.sources(), *Path(__file__).parent.glob("*.py"), *([Path(job["program"])] if job["program"] else [])]
    asked = {name: job[name] for name in ("dynamic", "output_names", "seed", "opset", "dynamo", "calibrate", "factory", "prune")}
    key: str = state.work_key(call.traceable.model, arrays, files, json.dumps(asked, default=str))
    before = Path(job["finished"]) / key
    if (before / "result.json").is_file():
        for path in before.iterdir():
            shutil.copyfile(path, folder / path.name)
        raise ReusedError(json.loads((before / "result.json").read_text()))
    return key


def onnx_file(job: dict[str, Any], folder: Path, stages: Stages) -> tuple[ModuleType, Any]:
    """A module without anything of its own, and what was learned of the file; model.onnx is a copy of it."""
    state, reading, studying = own("trace_state"), own("trace_onnx"), own("trace_study")
    path = Path(job["onnx"])
    with stages.enter("example"):
        given = state.as_arrays(state.read_example(Path(job["example"]))) if job["example"] else None
        call = reading.open_call(path, given)
        axes = studying.checked_axes(job["dynamic"] or reading.axes(call), call.example)
    with stages.enter("forward"):
        study = studying.study(call, axes, [], job["seed"], job["calibrate"] and not job["calibration"])
    with stages.enter("trace"):
        reading.copy(path, folder / "model.onnx")
    return ModuleType(path.stem), study


def work(job: dict[str, Any], folder: Path, stages: Stages) -> dict[str, Any]:
    """All stages in order. Returns what result.json says."""
    with stages.enter("start"):
        state = own("trace_state")
    if job["onnx"]:
        caught: list[tuple[str, int, str]] = []
        module, found = onnx_file(job, folder, stages)
    else:
        module, found, caught = user_model(job, folder, stages)
    with stages.enter("samples"):
        found.save(folder / "parity.npz")
        result = found.result()
    if job["calibrate"]:
        with stages.enter("calibration"):
            result |= calibrate(module, found, job, folder / "calibration.npz")
    warnings = [f"{Path(file).name}:{line}: {text}" for file, line, text in caught if stages.is_theirs(file)]
    result["key"] = found.key
    return {**result, "warnings": warnings, "code": getattr(module, "__file__", None), "torch": state.TORCH_VERSION}


def die_with_parent() -> None:
    """Ask Linux to kill this process with its parent: the user's code may run for ever, and nobody would be left to stop it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(folder: Path) -> None:
    die_with_parent()
    job = json.loads((folder / "job.json").read_text())
    stages = Stages(folder, tuple(Path(home).resolve() for home in job["folders"]))
    try:
        result = {"ok": True, **work(job, folder, stages)}
    except ReusedError as reused:
        result = {**reused.result, "reused": True}
    except StageError as failure:
        result = {"ok": False, "stage": failure.stage, "message": str(failure), "where": failure.where}
        traceback.print_exc()
    (folder / "result.json").write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that the user's code started must not keep the process


if __name__ == "__main__":
    main(Path(sys.argv[1]))
