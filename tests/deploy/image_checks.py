"""The built images tidegate:cpu and tidegate:monitor, run with podman: `make image-test`. Slow and root's, so no part of `make test`.

Nothing may be written, no capability is held, the user is 10001, and there's no network but the container's own loopback: clients are
processes of this machine that step into the container's network namespace.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.server.models import identity_model

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "build" / "containers"
_STORAGE = ("--root", str(STORE / "storage"), "--runroot", str(STORE / "run"), "--storage-driver", "overlay")
PODMAN = ("podman", *_STORAGE, "--runtime", "runc", "--cgroup-manager", "cgroupfs")
# What Kubernetes' restricted profile asks, and --read-only without the writable /tmp that podman would add.
LOCKED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", "--user=10001")
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
EMULATED = """\
backend: emulated
emulate: {table: t4, model: resnet50, precision: fp16}
batching: {max_rows: 64}
inputs: {x: {dtype: FP32, shape: [-1, 16]}}
outputs: {y: {dtype: FP32, shape: [-1, 4]}}
"""
pytestmark = pytest.mark.timeout(300)

# A client, a connection a request, until connections are refused. Whoever connected must be answered right, to the very last.
CLIENT = """
import http.client, json, sys
tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}
body = json.dumps({"inputs": [tensor]})
counts = {}
while True:
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=30)
    try:
        connection.connect()
    except ConnectionRefusedError:
        break
    try:
        connection.request("POST", f"/v2/models/{sys.argv[1]}/infer", body)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        right = answer.status == 200 and said["outputs"][0]["data"][0] == 16.0
        key = "right" if right else str(answer.status)
    except Exception as error:
        key = type(error).__name__
    counts[key] = counts.get(key, 0) + 1
    connection.close()
print(json.dumps(counts))
"""


class Container:
    """A container of tidegate:cpu. `ready` is its ready line."""

    def __init__(self, models: Path, *options: str) -> None:
        self.name = start("-v", f"{models}:/models:ro", *options, "tidegate:cpu")
        until(lambda: '"event":"ready"' in self.podman("logs", self.name).stdout)

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run((*PODMAN, *arguments), capture_output=True, text=True, check=False)

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.podman("exec", self.name, *command)

    @property
    def pid(self) -> int:
        return int(self.podman("inspect", self.name, "--format", "{{.State.Pid}}").stdout)

    def beside(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Python of this machine in the container's network."""
        command = ("nsenter", "--target", str(self.pid), "--net", sys.executable, "-c", code, *arguments)
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return int(self.podman("wait", self.name).stdout)

    def remove(self) -> None:
        self.podman("rm", "--force", "--time", "0", self.name)


def start(*arguments: str, network: str = "none") -> str:
    """Start a container, locked as above. Its name."""
    command = (*PODMAN, "run", "--detach", "--pull=never", *LIMITS, *LOCKED, f"--network={network}", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]


def until(holds: object, seconds: float = 60.0) -> None:
    assert callable(holds)
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    identity_model(tmp_path / "models" / "real" / "1" / "model.onnx")
    (tmp_path / "models" / "t4" / "1").mkdir(parents=True)
    (tmp_path / "models" / "t4" / "model.yaml").write_text(EMULATED)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent not in (Path("/"), Path("/tmp")):
            parent.chmod(0o755)
    return tmp_path / "models"


@pytest.fixture
def container(models: Path, request: pytest.FixtureRequest) -> Iterator[Container]:
    options: Sequence[str] = getattr(request, "param", ())
    made = Container(models, *options)
    yield made
    made.remove()


def test_it_serves_a_model_where_nothing_may_be_written(container: Container) -> None:
    logs = container.podman("logs", container.name)
    ready = json.loads(logs.stdout)
    assert ready["models"] == {"real": "READY", "t4": "READY"}, logs.stderr
    health = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/v2/health/ready').status)"
    assert container.inside("python3", "-c", health).stdout == "200\n"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [float(number) for number in range(16)]}
    ask = (
        "import json, sys, urllib.request as u\n"
        "print(json.load(u.urlopen('http://127.0.0.1:8000/v2/models/real/infer', sys.argv[1].encode()))['outputs'][0]['data'])"
    )
    answered = container.inside("python3", "-c", ask, json.dumps({"inputs": [tensor]}))
    assert json.loads(answered.stdout) == tensor["data"], answered.stderr


def test_it_is_nobody_and_can_do_nothing_else(container: Container) -> None:
    status = dict(line.split(":\t") for line in Path(f"/proc/{container.pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    for path in ("/x", "/tmp/x", "/opt/tidegate/x", "/models/x", "/home/x"):
        assert container.inside("python3", "-c", f"open({path!r}, 'w')").returncode != 0, f"{path} could be written"
    for program in ("pip", "pip3", "gcc", "cc"):
        assert container.inside("sh", "-c", f"command -v {program}").returncode != 0, f"{program} is in the image"
    assert container.inside("python3", "-c", "import torch").returncode != 0


def test_the_health_check_is_the_servers_own(container: Container) -> None:
    assert container.podman("healthcheck", "run", container.name).returncode == 0


@pytest.mark.parametrize("container", [("-e", "TIDEGATE_DRAIN_DELAY=1s")], indirect=True)
def test_sigterm_under_load_loses_no_accepted_request(container: Container) -> None:
    """24 clients of the emulated T4, a connection a request; SIGTERM in the middle; each goes on until it is refused."""
    clients = [container.beside(CLIENT, "t4") for _ in range(24)]
    page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics').read().decode())"

    def answered() -> int:
        lines = container.inside("python3", "-c", page).stdout.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("tidegate_requests_total{") and '"success"' in line)

    until(lambda: answered() > 500)
    waiting = threading.Thread(target=container.podman, args=("kill", "--signal", "TERM", container.name))
    waiting.start()
    counts = [json.loads(client.communicate(timeout=60)[0]) for client in clients]
    waiting.join()
    assert container.status() == 0
    total: dict[str, int] = {}
    for count in counts:
        for key, number in count.items():
            total[key] = total.get(key, 0) + number
    assert set(total) == {"right"}, total
    assert total["right"] > 500


def test_a_second_signal_ends_the_wait(models: Path) -> None:
    container = Container(models, "-e", "TIDEGATE_DRAIN_DELAY=60s")
    try:
        ready = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready')"
        os.kill(container.pid, signal.SIGTERM)
        until(lambda: container.inside("python3", "-c", ready).returncode != 0)
        os.kill(container.pid, signal.SIGTERM)
        until(lambda: container.podman("inspect", container.name, "--format", "{{.State.Status}}").stdout.strip() == "exited", 20)
    finally:
        container.remove()


def test_the_monitor_image_watches_the_server(container: Container, tmp_path: Path) -> None:
    """In the server's network, with one place to write: its state. The server is seen to be up, and the Watchdog is told."""
    rules = tmp_path / "monitor.yaml"
    targets = 'sources: {targets: ["127.0.0.1:8002"], nvml: "off", host: false}\n'
    rules.write_text(f"metrics: []\ninterval: 1s\n{targets}state: /var/lib/tidegate/monitor.db\nlisten: 127.0.0.1:9099\n")
    rules.chmod(0o644)
    state = ("--tmpfs", "/var/lib/tidegate:rw,mode=1777")
    mounted = f"{rules}:/etc/tidegate/monitor.yaml:ro"
    name = start(*state, "-v", mounted, "tidegate:monitor", network=f"container:{container.name}")
    try:
        until(lambda: "Watchdog" in container.podman("logs", name).stdout)
        until(lambda: container.podman("healthcheck", "run", name).returncode == 0)
        up = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9099/metrics').read().decode())"
        assert "tidegate_monitor_" in container.podman("exec", name, "python3", "-c", up).stdout
        logs = container.podman("logs", name)
        assert "TargetDown" not in logs.stdout, logs.stdout + logs.stderr
    finally:
        container.podman("rm", "--force", "--time", "10", name)
