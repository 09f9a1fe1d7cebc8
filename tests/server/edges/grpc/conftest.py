"""A process with the stock client, and one that speaks gRPC by bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

ROOT = Path(__file__).resolve().parents[4]
Stock: TypeAlias = Callable[..., None]


@pytest.fixture(scope="module")
def stock() -> Iterator[Stock]:
    """Runs a case of `cases` in the client's process: stock(name, address=…). Fails with that process's traceback.

    No longer than a module: other tests count this process's children."""
    command = [sys.executable, "-m", "tests.server.edges.grpc.cases"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(case: str, **arguments: Any) -> None:
            stdin.write(json.dumps([case, arguments]) + "\n")
            stdin.flush()
            line = stdout.readline()
            failure = json.loads(line) if line else f"the client's process ended with status {process.wait()}"
            if failure is not None:
                pytest.fail(failure, pytrace=False)

        yield run
        stdin.close()
