"""What a variant holds in memory: the peak of a process of its own that opens it as a server does and runs its largest batch.

    python -m exporters.parity.resident FOLDER      FOLDER/job.json says what; a line of JSON for each variant that was run

The runtime is loaded once, and each variant is served by a fork of that, so that what one leaves behind isn't counted to the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporters.parity.measure import TIMED_ROWS
from exporters.sources.pytorch import Sample
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.repository.manifest import Memory
from server.tensors import Tensor

RUNS = 3
JOB, INPUTS = "job.json", "inputs.npz"


def resident(specs: Sequence[VariantSpec], sample: Sample, batched: bool, folder: Path) -> list[Memory | None]:
    """The memory of each variant, with the first row of `sample` repeated to a batch of the largest size that's timed; None where it
    couldn't be measured: a system without /proc, or a process that was killed. `folder` is for files of its own.
    """
    rows = max(TIMED_ROWS) if batched else 1
    given = {name: np.repeat(array[:1], rows, axis=0) for name, array in sample.inputs.items()} if batched else sample.inputs
    folder.mkdir(exist_ok=True)
    with (folder / INPUTS).open("wb") as file:
        np.savez(file, **given)  # type: ignore[arg-type]
    (folder / JOB).write_text(json.dumps({"rows": rows, "variants": [_as_json(spec) for spec in specs]}))
    command = [sys.executable, "-P", "-m", "exporters.parity.resident", str(folder)]
    # Import paths as here: a package of the user's called `server` in the working folder isn't ours.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            told = child.communicate()[0]
        except BaseException:
            child.kill()
            raise
    found = [json.loads(line) for line in told.splitlines() if line.startswith(b"{")]
    by_index = {one["index"]: Memory(rows=rows, bare=one["bare"], peak=one["peak"]) for one in found}
    return [by_index.get(index) for index in range(len(specs))]


def _as_json(spec: VariantSpec) -> dict[str, Any]:
    plain = ("model", "version", "precision", "backend", "device", "threads", "optimization_level")
    return {"path": str(spec.path.resolve()), **{name: getattr(spec, name) for name in plain}}


def _serve(index: int, spec: VariantSpec, inputs: Mapping[str, Tensor], rows: int) -> None:
    """Open the variant, run it, and say what that took; in a process that ends with it."""
    bare = _peak()
    backend = backend_named(spec.backend).open(spec)
    taken = {tensor.name for tensor in backend.inputs}
    for _ in range(RUNS):
        backend.run({name: array for name, array in inputs.items() if name in taken}, rows)
    sys.stdout.write(json.dumps({"index": index, "bare": bare, "peak": _peak()}) + "\n")
    sys.stdout.flush()


def _peak() -> int:
    """Bytes that this process held at most since it was made. Not getrusage's: that is inherited."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main(folder: Path) -> None:
    job = json.loads((folder / JOB).read_text())
    specs = [VariantSpec(**{**said, "path": Path(said["path"])}) for said in job["variants"]]
    for backend in {spec.backend for spec in specs}:
        backend_named(backend)
    for index, spec in enumerate(specs):
        if (process := os.fork()) == 0:
            try:
                with np.load(folder / INPUTS, allow_pickle=False) as arrays:
                    _serve(index, spec, dict(arrays), job["rows"])
            finally:
                os._exit(0)  # also where it failed: the loop is the parent's
        os.waitpid(process, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
