"""What this machine can serve, as findings: each probe looks at one thing, says what it saw and, where it isn't well, what to do.

A probe never ends the others: what it can't find out is a finding too. Nothing here changes anything.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil

from server.config import VERSION

TRIAL_SECONDS = 120.0
MIN_FILES = 4096
MIN_MEMORY = 512 << 20
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
EXTRAS = ("cpu", "gpu", "export", "monitor", "loadtest")
CGROUP = Path("/sys/fs/cgroup")
REFERRAL = "; `tidegate doctor` says what the GPU lacks"
"""How errors of the backends end, which here would go round in a circle."""
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
FAILURES = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError, psutil.Error)
"""What the calls of a probe may raise; runtimes and drivers, which raise anything, are asked in another process or by their own class."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;\s*(.*))?")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>|~=)\s*([0-9][0-9.]*)")

State: TypeAlias = Literal["ok", "note", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of one thing. `advice` is what to do, "" where nothing is needed."""

    area: str
    name: str
    state: State
    seen: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, and the verdict: whether a model ran on the CPU, and on a GPU."""

    findings: tuple[Finding, ...]
    cpu: bool
    gpu: bool


Probe: TypeAlias = Callable[[], Iterable[Finding]]


def examine() -> Report:
    """Look at everything. Takes a few seconds, as models are really run."""
    cpu, gpu = run_on("cpu"), run_on("cuda:0")
    probes: list[tuple[str, Probe]] = [
        ("software", software),
        ("machine", machine),
        ("runtime", runtimes),
        ("runtime", lambda: [cpu, _expected(gpu)]),
        ("gpu", driver),
        ("gpu", libraries),
        ("extras", extras),
    ]
    findings = [finding for area, probe in probes for finding in safely(area, probe)]
    return Report(tuple(findings), cpu.state == "ok", gpu.state == "ok")


def safely(area: str, probe: Probe) -> list[Finding]:
    """A probe's findings, or that it couldn't be made."""
    try:
        return list(probe())
    except FAILURES as error:
        name = getattr(probe, "__name__", area)
        return [Finding(area, name, "warning", f"couldn't be looked at: {type(error).__name__}: {error}")]


def software() -> Iterator[Finding]:
    """Python, tidegate and the HTTP server that the hot path is built on."""
    found = sys.version_info
    new_enough = found >= (3, 11)
    yield Finding(
        "software",
        "Python",
        "ok" if new_enough else "failure",
        f"{found.major}.{found.minor}.{found.micro}",
        "" if new_enough else "use 3.11 or later",
    )
    yield Finding("software", "tidegate", "ok", VERSION)
    needed = next((bounds for name, bounds, _ in requirements() if name == "uvicorn"), "")
    installed = installed_version("uvicorn")
    if installed is None:
        yield Finding("software", "uvicorn", "failure", "not installed", "pip install tidegate")
    elif within(installed, needed):
        yield Finding("software", "uvicorn", "ok", installed)
    else:
        yield Finding(
            "software", "uvicorn", "failure", f"{installed}, but the hot path is built for {needed}", f"pip install 'uvicorn{needed}'"
        )


def machine() -> Iterator[Finding]:
    """Cores, memory and open files, within what this process may use."""
    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = cpu_quota(read_text(CGROUP / "cpu.max"))
    seen = f"{usable} of {all_cores} usable" + (f", limited to {quota:g} by the container" if quota else "")
    short = bool(quota) and quota < usable
    advice = f"set lanes.threads, or pin the process: by default {usable} threads share {quota:g} cores" if short else ""
    yield Finding("machine", "CPU cores", "warning" if short else "ok", seen, advice)
    memory = psutil.virtual_memory()
    limit = read_text(CGROUP / "memory.max")
    most = min(memory.total, int(limit)) if limit.isdecimal() else memory.total
    low = min(memory.available, most) < MIN_MEMORY
    seen = f"{gib(memory.available)} free of {gib(memory.total)}" + (
        f", limited to {gib(most)} by the container" if most < memory.total else ""
    )
    yield Finding("machine", "Memory", "warning" if low else "ok", seen, "models may not fit" if low else "")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < MIN_FILES
    advice = f"each connection takes one: ulimit -n {MIN_FILES} (at most {hard})" if few else ""
    yield Finding("machine", "Open files", "warning" if few else "ok", "unlimited" if soft == resource.RLIM_INFINITY else str(soft), advice)


def runtimes() -> Iterator[Finding]:
    """Which build of onnxruntime is installed, and what it says it can use. Both builds write to the same folder."""
    installed = {name: found for name in RUNTIMES if (found := installed_version(name)) is not None}
    seen = ", ".join(f"{name} {found}" for name, found in installed.items())
    if not installed:
        yield Finding(
            "runtime", "onnxruntime", "failure", "not installed", "pip install 'tidegate[cpu]' or, for NVIDIA GPUs, 'tidegate[gpu]'"
        )
        return
    if len(installed) > 1:
        advice = (
            f"they overwrite each other's files: pip uninstall -y {' '.join(RUNTIMES)}, then install 'tidegate[cpu]' or 'tidegate[gpu]'"
        )
        yield Finding("runtime", "onnxruntime", "warning", f"{seen}: a clash", advice)
    else:
        yield Finding("runtime", "onnxruntime", "ok", seen)
    done = trial("providers")
    if done.returncode:
        yield Finding("runtime", "Providers", "failure", *_reason(done))
        return
    listed, _, real = done.stdout.partition("\n")
    yield Finding("runtime", "Providers listed", "note", f"{listed} (built in; listed isn't usable)")
    yield Finding("runtime", "Providers with a device", "note", real or "not told by this onnxruntime")
    if TENSORRT_PROVIDER in listed:
        yield _expected(run_on("tensorrt", "A model by TensorRT"))


def run_on(device: str, name: str = "") -> Finding:
    """Whether a small model runs on `device` and answers right; "tensorrt" is onnxruntime's provider of that on the first GPU."""
    done, name = trial(device), name or f"A model on {device}"
    if done.returncode:
        return Finding("runtime", name, "failure", *_reason(done))
    return Finding("runtime", name, "ok", f"runs, {done.stdout.strip()}")


def trial(question: str) -> subprocess.CompletedProcess[str]:
    """Ask server.commands.trial in a process of its own, which may be killed by what it tries. Return code 124: it took too long."""
    path = os.pathsep.join(part for part in sys.path if part)
    command = [sys.executable, "-P", "-m", "server.commands.trial", question]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {TRIAL_SECONDS:g} s")


def _reason(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Why a trial failed, and what to do."""
    if done.returncode < 0:
        advice = "the installed build doesn't fit this machine's CPU or driver; reinstall it"
        return f"the process was killed by signal {-done.returncode}", advice
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return re.sub(r"^\S*double\.onnx: ", "", last).removesuffix(REFERRAL), ""


def _expected(gpu: Finding) -> Finding:
    """That no GPU runs is no fault where none was asked for by installing the build for it."""
    if gpu.state == "ok" or installed_version("onnxruntime-gpu") is not None:
        return gpu
    return Finding(gpu.area, gpu.name, "note", gpu.seen)


def driver() -> Iterator[Finding]:
    """The NVIDIA driver and its GPUs, by NVML where its binding is installed, else by the traces a driver leaves."""
    module = read_text(Path("/proc/driver/nvidia/version")).partition("\n")[0]
    nvml = nvml_findings()
    yield from nvml
    if not nvml or nvml[0].state != "ok":
        smi = shutil.which("nvidia-smi")
        traces = [part for part in (module, f"nvidia-smi at {smi}" if smi else "") if part]
        yield Finding("gpu", "NVIDIA driver", "note", "; ".join(traces) or "no sign of one: GPUs can't be used here")


def libraries() -> Iterator[Finding]:
    """CUDA and TensorRT as the backends for GPUs find them, which may differ from what onnxruntime brings. That they aren't there is no
    fault where no GPU was asked for by installing the build for it."""
    done = trial("libraries")
    if done.returncode:
        yield Finding("gpu", "CUDA and TensorRT", "note", *_reason(done))
        return
    for line in done.stdout.splitlines():
        name, state, seen = line.split("\t", 2)
        seen = seen.removesuffix(REFERRAL)
        finding = Finding("gpu", name, "ok" if state == "ok" else "failure", seen)
        yield _expected(finding)
    yield Finding("gpu", "Proof", "note", "tidegate's code for GPUs is unproven on a GPU, but for what docs/proofs/ holds (make gpu-check)")


def nvml_findings() -> list[Finding]:
    """What NVML says, nothing without its binding (nvidia-ml-py)."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    findings: list[Finding] = []
    try:
        nvml.nvmlInit()
        findings.append(Finding("gpu", "NVML", "ok", f"driver {text(nvml.nvmlSystemGetDriverVersion())}"))
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = gib(nvml.nvmlDeviceGetMemoryInfo(handle).total)
            findings.append(Finding("gpu", f"GPU {index}", "ok", f"{text(nvml.nvmlDeviceGetName(handle))}, {memory}"))
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        findings.append(Finding("gpu", "NVML", "note", str(error)))
    return findings


def extras() -> Iterator[Finding]:
    """Which optional parts are whole. cpu and gpu exclude each other."""
    missing = {extra: [name for name, bounds in of_extra(extra) if not within(installed_version(name) or "", bounds)] for extra in EXTRAS}
    for extra, names in missing.items():
        other = {"cpu": "gpu", "gpu": "cpu"}.get(extra)
        if not of_extra(extra):
            continue
        if not names:
            yield Finding("extras", extra, "ok", "installed")
        elif other and not missing[other]:
            yield Finding("extras", extra, "note", f"not installed, which is right beside {other}")
        else:
            yield Finding("extras", extra, "note", f"not installed: {', '.join(names)}", f"when needed: pip install 'tidegate[{extra}]'")


def of_extra(extra: str) -> list[tuple[str, str]]:
    """Name and bounds of what an extra needs."""
    return [(name, bounds) for name, bounds, marker in requirements() if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker)]


def requirements() -> list[tuple[str, str, str]]:
    """What the installed tidegate declares: name, bounds, marker. Nothing when run from a folder that isn't installed."""
    try:
        lines = requires("tidegate") or []
    except PackageNotFoundError:
        return []
    matches = (_REQUIREMENT.fullmatch(line.strip()) for line in lines)
    return [(found[1], found[2], found[3] or "") for found in matches if found]


def within(installed: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as `>=0.54,<0.55`; "" is no version."""
    have = _release(installed)
    compare: dict[str, Callable[[tuple[int, ...]], bool]] = {
        ">=": lambda bound: have >= bound,
        "<=": lambda bound: have <= bound,
        "<": lambda bound: have < bound,
        ">": lambda bound: have > bound,
        "==": lambda bound: have == bound,
        "!=": lambda bound: have != bound,
        "~=": lambda bound: have >= bound and have[: len(bound) - 1] == bound[:-1],
    }
    return bool(installed) and all(compare[sign](_release(bound)) for sign, bound in _BOUND.findall(bounds))


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, None where there's none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_quota(line: str) -> float:
    """Cores that a container may use by its cgroup's cpu.max (`200000 100000` is 2), 0 for no limit."""
    quota, _, period = line.partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else 0.0


def read_text(path: Path) -> str:
    """A file of the kernel's, "" where there's none."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def text(value: str | bytes) -> str:
    """NVML's older bindings give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _release(number: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", number)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
