"""A backend whose run does what its input says, in whatever process it runs: y = x, or what MAGIC names.

`registered` declares it as another package would, by an entry point, so that a lane's child finds it by name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from server.backends.base import VariantSpec
from server.errors import DeviceLost, InvalidRequest, ModelDefect
from server.tensors import Tensor, TensorSpec

NAME = "scripted"
DIES, KILLED, HANGS, SLEEPS, ODD, REFUSED, PID, MUTE, LOST = (1000.0 + index for index in range(9))
"""In x[any row, 0]: exit, SIGKILL, no end, 0.2 s, ZeroDivisionError, InvalidRequest, y = the process id, y of an odd type, DeviceLost."""
NAP = 0.2


class Scripted:
    """Options: `fail_open` is a ModelDefect's text, `die_at_open` a file that makes opening fatal while it's there, `hang_at_open` makes it
    endless."""

    version: ClassVar[str] = "scripted 1"

    def __init__(self, spec: VariantSpec) -> None:
        datatype = str(spec.options.get("datatype", "FP32"))
        width = int(spec.options.get("width", 2))
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("x", datatype, (-1, width)),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("y", datatype, (-1, width)),)
        self.threads = spec.threads
        self.closed = False

    @classmethod
    def open(cls, spec: VariantSpec) -> Scripted:
        if "fail_open" in spec.options:
            raise ModelDefect(str(spec.options["fail_open"]))
        if Path(str(spec.options.get("die_at_open", "/nonexistent"))).exists():
            os._exit(9)
        if spec.options.get("hang_at_open"):
            time.sleep(3600)
        return cls(spec)

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        x = inputs["x"]
        if x.dtype == object or not x.size:
            return {"y": x.copy()}
        for value in x[:, 0].astype(float):
            act(value)
        if x[0, 0] == PID:
            return {"y": np.full(x.shape, os.getpid(), x.dtype)}
        return {"y": x.astype("M8[s]") if x[0, 0] == MUTE else x.copy()}

    def close(self) -> None:
        self.closed = True


def act(value: float) -> None:
    """What a row's first value asks for."""
    if value == DIES:
        os._exit(7)
    if value == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if value == HANGS:
        time.sleep(3600)
    if value == SLEEPS:
        time.sleep(NAP)
    if value == ODD:
        raise ZeroDivisionError("odd")
    if value == REFUSED:
        raise InvalidRequest("no")
    if value == LOST:
        raise DeviceLost("device cuda:0: cudaErrorIllegalAddress")


def spec_of(**options: object) -> VariantSpec:
    """What opens it. Options as Scripted has them."""
    return VariantSpec("m", "1", "fp32", NAME, Path("none"), threads=1, options=options)


def declare(folder: Path) -> Path:
    """Write a package's metadata that declares the backend into `folder`, which then belongs on sys.path."""
    info = folder / "tidegate_scripted-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tidegate-scripted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tidegate.backends]\n{NAME} = {__name__}:Scripted\n")
    return folder
