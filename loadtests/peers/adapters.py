"""One small class a peer: what it needs, how it's started for a workload, when it's ready, which bodies it takes.

To add a server: subclass Peer, write `command`, list it in PEERS. Its own code, if it needs any, lies in servers/.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers.workloads import Setting, Workload

SERVERS = Path(__file__).with_name("servers")
ONNXRUNTIME = "onnxruntime==1.32.0"
ONE_INPUT = ("identity", "mlp", "mobilenet_v2")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs: its venv, the folder of this run, the model's file, the first of three free ports."""

    venv: Path
    folder: Path
    model: Path
    port: int

    def program(self, name: str) -> str:
        return str(self.venv / "bin" / name)


class Peer:
    """A server to be compared with. `packages` are pinned; `ready` answers 200 once it serves; `note` says what is compared."""

    name = ""
    note = ""
    packages: Sequence[str] = ()
    ready = "/ready"
    venv = ""

    def formats(self, workload: Workload) -> Sequence[str]:
        """Bodies it takes, of bodies.FORMATS."""
        return ("json", "raw") if workload.name in ONE_INPUT else ("json",)

    def path(self, workload: Workload, form: str) -> str:
        return "/raw" if form == "raw" else "/predict"

    def settings(self, workload: Workload) -> Sequence[Setting]:
        """What is tried."""
        return workload.settings

    def environment(self, workload: Workload, setting: Setting, place: Place) -> Mapping[str, str]:
        """Of its processes."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "PATH": f"{place.venv / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(SERVERS),
            "PEERS_SERVERS": str(SERVERS),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "WORKLOAD": workload.name,
            "MODEL": str(place.model),
            "PORT": str(place.port),
            "MAX_ROWS": str(setting.max_rows),
            "DELAY_MS": f"{setting.delay_ms:g}",
            "THREADS": str(setting.threads),
            "INSTANCES": str(setting.instances),
        }

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        """The program and its arguments; it may write into place.folder first."""
        raise NotImplementedError


class FastApi(Peer):
    name = "fastapi"
    note = "no batching, 2 uvicorn workers, pydantic"
    packages = ("fastapi==0.128.0", "uvicorn[standard]", ONNXRUNTIME)

    def settings(self, workload: Workload) -> Sequence[Setting]:
        return (Setting(1, 0.0, 1, 2),)

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        options = ["--app-dir", str(SERVERS), "--port", str(place.port), "--workers", str(setting.instances)]
        return [place.program("uvicorn"), "fastapi_app:app", *options, "--no-access-log", "--log-level", "error"]


class LitServe(Peer):
    name = "litserve"
    note = "one API server, fast_queue on"
    packages = ("litserve==0.2.19", ONNXRUNTIME)
    ready = "/health"

    def formats(self, workload: Workload) -> Sequence[str]:
        return ("json", "b64") if workload.name in ONE_INPUT else ("json",)

    def path(self, workload: Workload, form: str) -> str:
        return "/predict"

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        return [place.program("python"), str(SERVERS / "litserve_app.py")]


class BentoMl(Peer):
    name = "bentoml"
    note = "adaptive batching, default patience"
    packages = ("bentoml==1.4.39", ONNXRUNTIME, "uvloop", "httptools")
    ready = "/readyz"

    def formats(self, workload: Workload) -> Sequence[str]:
        return ("bento-json", "bento-b64") if workload.name in ONE_INPUT else ("bento-json",)

    def path(self, workload: Workload, form: str) -> str:
        return "/b64" if form == "bento-b64" else "/predict"

    def environment(self, workload: Workload, setting: Setting, place: Place) -> Mapping[str, str]:
        more = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder / "home")}
        return {**super().environment(workload, setting, place), **more}

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        options = ["--working-dir", str(SERVERS), "--port", str(place.port), "--host", "127.0.0.1"]
        return [place.program("bentoml"), "serve", "bentoml_app:Service", *options]


class RayServe(Peer):
    name = "ray"
    note = "@serve.batch, the raw request, orjson"
    packages = ("ray[serve]==2.60.0", ONNXRUNTIME, "orjson")
    ready = "/-/healthz"

    def environment(self, workload: Workload, setting: Setting, place: Place) -> Mapping[str, str]:
        more = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_FOLDER": str(place.folder / "ray")}
        return {**super().environment(workload, setting, place), **more}

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        return [place.program("python"), str(SERVERS / "ray_app.py")]


class Mosec(Peer):
    name = "mosec"
    note = "its Rust front; it waits at least 1 ms"
    packages = ("mosec==0.9.8", ONNXRUNTIME, "orjson")
    ready = "/metrics"

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        options = ["--port", str(place.port), "--address", "127.0.0.1", "--timeout", "60000", "--log-level", "warning"]
        return [place.program("python"), str(SERVERS / "mosec_app.py"), *options]


class MlServer(Peer):
    name = "mlserver"
    note = "inference in its own process; texts not batched, since it can't pad"
    packages = ("mlserver==1.7.1", ONNXRUNTIME)
    ready = "/v2/health/ready"

    def formats(self, workload: Workload) -> Sequence[str]:
        return ("v2-json",)

    def path(self, workload: Workload, form: str) -> str:
        return f"/v2/models/{workload.name}/infer"

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        ports = {"http_port": place.port, "grpc_port": place.port + 1, "metrics_port": place.port + 2}
        server = {**ports, "host": "127.0.0.1", "debug": False, "parallel_workers": 0, "use_structured_logging": False}
        model: dict[str, object] = {"name": workload.name, "implementation": "mlserver_ort.OrtModel"}
        batching = {"max_batch_size": setting.max_rows, "max_batch_time": setting.delay_ms / 1e3}
        if workload.name in ONE_INPUT and setting.max_rows > 1 and setting.delay_ms:
            model |= batching
        folder = place.folder / "models" / workload.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "settings.json").write_text(json.dumps(server))
        (folder / "model-settings.json").write_text(json.dumps(model))
        return [place.program("mlserver"), "start", str(folder.parent)]


class Triton(Peer):
    """The tritonserver of nvidia-pytriton, run directly."""

    name = "triton"
    note = "C++ front; its Python backend runs onnxruntime, since the C++ onnxruntime backend is in no package"
    packages = ("nvidia-pytriton==0.7.0", ONNXRUNTIME)
    ready = "/v2/health/ready"

    def formats(self, workload: Workload) -> Sequence[str]:
        return ("v2-binary", "v2-json") if workload.name in ("identity", "mlp") else ("v2-binary",)

    def path(self, workload: Workload, form: str) -> str:
        return f"/v2/models/{workload.name}/infer"

    def environment(self, workload: Workload, setting: Setting, place: Place) -> Mapping[str, str]:
        site = _site(place.venv)
        values = super().environment(workload, setting, place)
        return {**values, "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"), "PYTHONPATH": f"{SERVERS}:{site}"}

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        site = _site(place.venv)
        triton, backends = site / "pytriton" / "tritonserver", place.folder / "backends"
        shutil.copytree(triton / "backends", backends, dirs_exist_ok=True)
        stub = backends / "python" / "triton_python_backend_stub"
        shutil.copy(triton / "python_backend_stubs" / site.parent.name.removeprefix("python") / stub.name, stub)
        stub.chmod(0o755)
        model = place.folder / "models" / workload.name
        (model / "1").mkdir(parents=True, exist_ok=True)
        shutil.copy(SERVERS / "triton_model.py", model / "1" / "model.py")
        (model / "config.pbtxt").write_text(_triton_config(workload, setting))
        ports = [f"--{kind}-port={place.port + number}" for number, kind in enumerate(("http", "grpc", "metrics"))]
        addresses = ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--log-info=0", "--http-thread-count=2"]
        folders = [f"--model-repository={model.parent}", f"--backend-directory={backends}"]
        return [str(triton / "bin" / "tritonserver"), *folders, *ports, *addresses]


class TritonCache(Triton):
    """The same with its response cache: every answer a hit, so that only its C++ is measured."""

    name = "triton-cache"
    note = "answers from its response cache, no model run: its C++ front alone"
    venv = "triton"

    def formats(self, workload: Workload) -> Sequence[str]:
        return ("v2-binary",) if workload.name == "identity" else ()

    def settings(self, workload: Workload) -> Sequence[Setting]:
        return (Setting(32, 0.0),)

    def command(self, workload: Workload, setting: Setting, place: Place) -> Sequence[str]:
        command = [*super().command(workload, setting, place), "--cache-config=local,size=67108864"]
        config = place.folder / "models" / workload.name / "config.pbtxt"
        config.write_text(config.read_text() + "response_cache { enable: true }\n")
        caches = _site(place.venv) / "pytriton" / "tritonserver" / "caches"
        return [*command, f"--cache-directory={caches}"]


def _site(venv: Path) -> Path:
    return next((venv / "lib").glob("python3*/site-packages"))


SHAPES = {"identity": ("16", "16"), "mlp": ("784", "10"), "mobilenet_v2": ("3, 224, 224", "1000"), "minilm": ("-1", "384")}


def _triton_config(workload: Workload, setting: Setting) -> str:
    taken, given = SHAPES[workload.name]
    if workload.name == "minilm":
        names = ("input_ids", "attention_mask")
        inputs = ", ".join(f'{{name: "{name}" data_type: TYPE_INT64 dims: [-1] allow_ragged_batch: true}}' for name in names)
    else:
        inputs = f'{{name: "{"image" if workload.name == "mobilenet_v2" else "X"}" data_type: TYPE_FP32 dims: [{taken}]}}'
    batching = f"dynamic_batching {{max_queue_delay_microseconds: {round(setting.delay_ms * 1000)}}}" if setting.max_rows > 1 else ""
    return (
        f'backend: "python"\nmax_batch_size: {setting.max_rows}\ninput: [{inputs}]\n'
        f'output: [{{name: "Y" data_type: TYPE_FP32 dims: [{given}]}}]\n{batching}\n'
        f"instance_group: [{{count: {setting.instances} kind: KIND_CPU}}]\n"
    )


PEERS: Mapping[str, Peer] = {
    peer.name: peer for peer in (Triton(), TritonCache(), Mosec(), LitServe(), BentoMl(), RayServe(), MlServer(), FastApi())
}
