"""The child process: it runs the user's code alone, and whatever that does ends in one clear error or a trace."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.plan import ExportError, ModelRef, Plan
from exporters.sources.pytorch import Traced, trace
from tests.exporters.conftest import Remembers, Writer


def plan(model: ModelRef, user: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {"model": model, "name": "m", "repository": user / "models", "example": user / "features.npz"}
    return Plan(**(given | changes))


@pytest.fixture
def traced(tmp_path: Path, reporter: Remembers) -> Any:
    """Traces a plan in a folder of its own."""

    def run(asked: Plan) -> Traced:
        folder = tmp_path / "work"
        folder.mkdir()
        return trace(asked, folder, reporter.detail)

    return run


def test_packages_of_the_user_win_over_tidegates_own(traced: Any, user: Path, reporter: Remembers) -> None:
    for package in ("server", "exporters"):
        (user / package).mkdir()
        (user / package / "__init__.py").write_text("WIDTH = 7\n")
    (user / "server" / "nets.py").write_text(
        "import sys, threading, time\n"
        "import exporters, server\n"
        "from torch import nn\n"
        "assert not hasattr(server, 'errors') and 'typer' not in sys.modules\n"
        "print('noise ' * 100_000)\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = nn.Linear(4, server.WIDTH + exporters.WIDTH)\n"
        "    def forward(self, x):\n"
        "        return self.a(x)\n"
    )
    found: Traced = traced(plan(ModelRef("server.nets:Net", "Net", (user,), module="server.nets"), user))
    assert found.outputs[0].shape == (-1, 14)
    assert found.code == user / "server" / "nets.py"
    assert (found.unbatched, found.warnings) == (None, ())
    samples = list(found.samples())
    assert [sample.rows for sample in samples[:4]] == [1, 2, 5, 8]
    assert samples[2].inputs["features"].shape == (5, 4)
    np.testing.assert_array_equal(samples[0].inputs["features"], np.load(user / "features.npz")["features"][:1])
    assert reporter.details[-1] in ("trace it to ONNX", "write the parity samples")


def test_code_that_ends_the_process(traced: Any, user: Path, written: Writer) -> None:
    said = "mine.py:make: ended its process with status 3, trying to import the module; its last output:\n  | one\n  | two"
    with pytest.raises(ExportError, match=re.escape(said)):
        traced(plan(written("import os\nprint('one\\ntwo', flush=True)\nos._exit(3)"), user))


def test_code_that_exits_or_asks(traced: Any, user: Path, written: Writer) -> None:
    code = "import sys\ntry:\n    input()\nexcept EOFError:\n    sys.exit('nobody there')\n"
    with pytest.raises(ExportError, match=re.escape("couldn't import the module: the code called exit('nobody there') (mine.py:5 in")):
        traced(plan(written(code), user))


def test_an_error_in_forward_names_the_users_own_line(traced: Any, user: Path, written: Writer) -> None:
    model = written("""\
        from torch import nn
        class Net(nn.Module):
            def forward(self, x):
                return nn.functional.linear(x, x.new_zeros(3, 9))
        make = Net
    """)
    with pytest.raises(ExportError, match=re.escape("couldn't run the model: RuntimeError: ")) as caught:
        traced(plan(model, user))
    assert str(caught.value).endswith("(mine.py:4 in forward)")


def test_code_that_takes_too_long_is_stopped(traced: Any, user: Path, written: Writer) -> None:
    with pytest.raises(ExportError, match=r"mine\.py:make: stopped after 0\.2 s, trying to .*; --timeout SECONDS gives it more"):
        traced(plan(written("import time\ntime.sleep(1000)"), user, timeout=0.2))


def test_an_interrupt_kills_the_child_and_what_it_started(user: Path, written: Writer, tmp_path: Path) -> None:
    model = written("""\
        import os, pathlib, subprocess, time
        started = subprocess.Popen(["sleep", "1000"])
        pathlib.Path(__file__).with_name("pids").write_text(f"{os.getpid()} {started.pid}")
        time.sleep(1000)
    """)
    pids = user / "pids"

    def interrupt(stage: str) -> None:
        """What Ctrl-C is: an exception in the middle of the wait, here when the user's code is known to run."""
        if stage == "import the module":
            while not pids.exists() or len(pids.read_text().split()) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(plan(model, user), tmp_path, interrupt)
    child, grandchild = map(int, pids.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert _is_gone(grandchild)


def _is_gone(pid: int) -> bool:
    """No such process, or a dead one that nobody has asked about yet: it was orphaned, and init may take its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
