"""One server in a process of its own for all that is malformed: whatever one case does must not hurt the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from examples.serving import ServerProcess, server_environment
from server.tensors import DTYPES
from tests.server.models import identity_model, two_inputs_model
from tests.server.test_serve import COMMAND

LIMITS = {"MAX_BODY": "1MiB", "MAX_JSON_BODY": "512KiB", "JSON_OFFLOAD": "128KiB", "MAX_HEADER_BYTES": "16KiB"}


FLAGS = ("--model-control", "explicit", "--load-model", "*", "--allow", "upload,shared-memory")
"""All that clients may be allowed, so that what they do wrong gets as far as it can."""


@dataclass(frozen=True, slots=True)
class Served:
    """Where it is, and its process as the system sees it."""

    http: str
    grpc: str
    process: psutil.Process

    @property
    def memory(self) -> int:
        """Resident bytes, those of its children included."""
        return sum(int(one.memory_info().rss) for one in (self.process, *self.process.children(recursive=True)))

    @property
    def descriptors(self) -> int:
        return int(self.process.num_fds())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("malformed")
    root = repository(folder / "models")
    limits = {f"TIDEGATE_LIMITS_{name}": value for name, value in LIMITS.items()}
    environment = {**server_environment(), **limits, "TIDEGATE_GRPC_MAX_MESSAGE": "2MiB"}
    with ServerProcess([*COMMAND, *FLAGS, "--repository", str(root)], folder / "log", environment) as process:
        yield Served(process.ready["http"], process.ready["grpc"], psutil.Process(process.pid))


def repository(root: Path) -> Path:
    """m FP32 [N,16] of at most 8 rows, echo_DATATYPE [N,W] for every datatype, pair."""
    identity_model(root / "m" / "1" / "model.onnx")
    (root / "m" / "model.yaml").write_text("batching: {max_rows: 8}\n")
    for datatype in DTYPES:
        identity_model(root / f"echo_{datatype}" / "1" / "model.onnx", datatype, "W")
    two_inputs_model(root / "pair" / "1" / "model.onnx")
    return root
