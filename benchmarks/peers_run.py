"""The peers as processes: their virtual environments, a server started and stopped with all that it started, the model files."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from benchmarks.harness import BUILD, TIDEGATE, BenchError
from benchmarks.models import write_identity
from examples.console import step
from loadtests.peers.adapters import Peer, Place
from loadtests.peers.workloads import Setting, Workload

FOLDER = BUILD.parent / "peers"
START = 90.0  # seconds that a server may take
SETTLE = 1.0
HIDDEN = 512
GRACE = 8.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers; its process tree is `root` and below."""

    address: str
    root: psutil.Process

    def memory(self) -> int:
        """Bytes of it and its children (USS)."""
        found = 0
        for process in [self.root, *self.root.children(recursive=True)]:
            with suppress(psutil.Error):
                found += process.memory_full_info().uss
        return found

    def cpu(self) -> float:
        """Seconds of CPU, of it and its children."""
        found = 0.0
        for process in [self.root, *self.root.children(recursive=True)]:
            with suppress(psutil.Error):
                times = process.cpu_times()
                found += times.user + times.system
        return found


class Ours(Peer):
    """tidegate itself: the settings are its own, lanes and batches are chosen by what it measures."""

    name = "tidegate"
    note = "lanes, threads and batches as it chooses them"
    ready = "/v2/health/ready"

    def formats(self, workload: Workload) -> Sequence[str]:
        return ("v2-binary", "v2-json") if workload.name in ("identity", "mlp") else ("v2-binary",)

    def path(self, workload: Workload, form: str) -> str:
        return f"/v2/models/{workload.name}/infer"

    def settings(self, workload: Workload) -> Sequence[Setting]:
        return (Setting(0),)

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        version = place.folder / "models" / workload.name / "1"
        version.mkdir(parents=True, exist_ok=True)
        shutil.copy(place.model, version / "model.onnx")
        if workload.name == "minilm":
            text = "batching: {max_rows: 16, pad_axes: {input_ids: [1], attention_mask: [1]}}\nlanes: {count: 2, threads: 1}\n"
            (version.parent / "model.yaml").write_text(text)
        ports = [f"--{kind}-port={place.port + number}" for number, kind in enumerate(("http", "grpc", "metrics"))]
        return [TIDEGATE, "serve", "--repository", str(version.parents[1]), *ports]


def make_venvs(peers: Sequence[Peer], console: Console) -> list[tuple[Peer, Path]]:
    """Each peer with its virtual environment, made where its packages changed. One that can't be had here is left out, and said."""
    ready: list[tuple[Peer, Path]] = []
    for peer in peers:
        venv = FOLDER / (peer.venv or peer.name)
        try:
            with step(console, f"{peer.name}: {peer.note}"):
                _make_venv(venv, peer.packages)
            ready.append((peer, venv))
        except BenchError as error:
            console.print(f"[red]{peer.name} is left out:[/] {error}")
    return ready


def _make_venv(venv: Path, packages: Sequence[str]) -> None:
    stamp, key = venv / "packages", sha256("\n".join(packages).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key:
        return
    commands = ([sys.executable, "-m", "venv", "--clear", str(venv)], [str(venv / "bin" / "pip"), "install", "-q", *packages])
    for command in commands:
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        if shown.returncode:
            raise BenchError(f"{' '.join(command[1:4])} failed: {shown.stderr.strip()[-400:]}")
    stamp.write_text(key)


def model_files(models: Path) -> Mapping[str, Path]:
    """The ONNX file of each workload."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_identity(FOLDER / "identity.onnx")
    _write_mlp(FOLDER / "mlp.onnx")
    found = {name: next((models / name).glob("*/model.fp32.onnx")).resolve() for name in ("minilm", "mobilenet_v2")}
    return {"identity": FOLDER / "identity.onnx", "mlp": FOLDER / "mlp.onnx", **found}


def _write_mlp(path: Path) -> None:
    """784-512-512-10 with ReLU, weights drawn."""
    random = np.random.default_rng(11)
    sizes, nodes, constants, name = (784, HIDDEN, HIDDEN, 10), [], [], "X"
    for layer, (taken, given) in enumerate(pairwise(sizes)):
        weights = (random.standard_normal((taken, given)) / np.sqrt(taken)).astype(np.float32)
        constants += [numpy_helper.from_array(weights, f"w{layer}"), numpy_helper.from_array(np.zeros(given, np.float32), f"b{layer}")]
        last = layer == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], ["Y" if last else f"g{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{layer}"], [f"r{layer}"]))
        name = f"r{layer}"
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", size]) for each, size in (("X", 784), ("Y", 10))]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@contextmanager
def serving(peer: Peer, venv: Path, workload: Workload, setting: Setting, model: Path) -> Iterator[Running]:
    """The peer, serving. Raises BenchError, with its log's place, where it doesn't come up."""
    folder = FOLDER / "runs" / f"{peer.name}-{workload.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    place = Place(venv, folder, model, _free_ports())
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            peer.command(workload, setting, place),
            env=dict(peer.environment(workload, setting, place)),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    root = psutil.Process(process.pid)
    try:
        _await(process, peer, place.port, folder)
        time.sleep(SETTLE)  # some answer that they're ready before their workers are
        yield Running(f"127.0.0.1:{place.port}", root)
    finally:
        _stop(process, root)


def _await(process: subprocess.Popen[bytes], peer: Peer, port: int, folder: Path) -> None:
    deadline = time.monotonic() + START
    while not _answers(port, peer.ready):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{peer.name} didn't start: {(folder / 'log').read_text(errors='replace').strip()[-400:]}")
        time.sleep(0.1)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes], root: psutil.Process) -> None:
    """End the processes that were started here, by id: politely, then not."""
    mine = [root, *root.children(recursive=True)] if root.is_running() else []
    with suppress(psutil.Error):
        root.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(mine, GRACE)
    for each in alive:
        with suppress(psutil.Error):
            each.terminate()
    _, alive = psutil.wait_procs(alive, 2.0)
    for each in alive:
        with suppress(psutil.Error):
            each.kill()
    process.wait()


def _free_ports() -> int:
    """The first of three free ports in a row, below those that the system gives to clients."""
    for first in range(21000, 29000, 7):
        with suppress(OSError):
            for port in range(first, first + 3):
                with socket.socket() as taken:
                    taken.bind(("127.0.0.1", port))
            return first
    raise BenchError("no three free ports in a row between 21000 and 29000")
