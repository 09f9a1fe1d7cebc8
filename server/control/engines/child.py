"""One run of `tidegate export engine` in a process of its own: at low priority, bounded in time, its output in a file beside the engine.

The server knows nothing of the exporters but this command line; an image without them says so in that file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.backends.nvidia.folders import private_folder
from server.repository.devices.engines import EngineBuild

COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "tidegate", "export", "engine")
GRACE = 10.0  # seconds between asking the child to end and killing it
LOWEST = 19
MAX_REASON = 300


async def run_build(build: EngineBuild, command: Sequence[str], limit: float) -> str:
    """Why the build failed, "" where its engine is there now. Cancelled, it ends the child first. Raises ModelDefect for a cache that isn't
    this user's alone."""
    for folder in (build.into.parents[1], build.into.parent):
        private_folder(folder)
    arguments = [str(build.folder), "--precision", build.precision, "--into", str(build.into), "--engine", f"most_rows={build.most_rows}"]
    log = log_of(build)
    environment = child_environment(build.device, os.environ)
    with log.open("wb") as output:
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return f"{command[0]}: can't be started: {error.strerror}"
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, child.pid, LOWEST)
    try:
        async with asyncio.timeout(limit):
            status = await child.wait()
    except TimeoutError:
        return f"it wasn't done after {limit:g} s"
    finally:
        await _ended(child)
    if status == 0 and build.into.is_dir():
        return ""
    return _last(log) or f"it ended with status {status} and said nothing"


def child_environment(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The child finds our modules where we did, and sees only the GPU that the engine is for, which is its first."""
    number = int(device.rpartition(":")[2])
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        "CUDA_VISIBLE_DEVICES": visible[number] if number < len(visible) else str(number),
    }


def log_of(build: EngineBuild) -> Path:
    """The file with what the build said."""
    return build.into.with_suffix(".log")


async def _ended(child: Process) -> None:
    """End the child and what it started, if they're still there; TensorRT's builder notices at its next step."""
    if child.returncode is not None:
        return
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await child.wait()
                return


def _last(log: Path) -> str:
    """The last line that was said, which is the error where there's one."""
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return lines[-1].strip().removeprefix("error: ")[:MAX_REASON]
