"""Who imports whom: the contracts of pyproject.toml hold, and they cover what the design says they cover."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.house import ROOT, contracts, modules

PURE = {
    "server.protocol",
    "server.messages",
    "server.tensors",
    "server.padding",
    "server.classification",
    "server.errors",
    "server.numerics",
    "server.engine.batcher",
    "server.engine.cost_model",
    "server.engine.decide",
    "server.engine.request_queue",
    "server.engine.recovery",
    "server.lanes.arbiter",
    "server.router.rules",
    "server.control.routing.following",
    "server.state.redis.lease",
    "server.router.evidence",
    "server.router.martingales",
    "server.router.canary",
    "server.router.experiment",
    "server.precision.ladder",
    "server.precision.drift",
    "server.precision.variants",
    "monitor.evaluator",
    "loadtests.arrivals",
    "loadtests.report.compare",
}
"""What the design calls pure: it takes `now` as an argument and knows no event loop, thread or socket."""

MAY_IMPORT_LATE = (
    "server/backends/",
    *(f"{package}/{folder}/" for package in ("exporters", "monitor") for folder in ("sources", "formats")),
    "exporters/disk/",
    "exporters/optimize/",
    "exporters/precision/",
)
"""Folders whose functions may import: they hold the optional libraries."""


def test_import_contracts_hold() -> None:
    program = str(Path(sys.executable).with_name("lint-imports"))
    result = subprocess.run([program, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_pure_module_that_exists_is_under_the_contract() -> None:
    contract = next(c for c in contracts() if c["name"] == "pure parts do no I/O")
    existing = {module.dotted for module in modules()} & PURE
    assert existing == set(contract["source_modules"]), "list it in pyproject.toml under `pure parts do no I/O`"


def test_only_optional_libraries_are_imported_inside_functions() -> None:
    late = [
        f"{module.name}:{statement.lineno}: {ast.unparse(statement)}"
        for module in modules()
        if not module.name.startswith(MAY_IMPORT_LATE)
        for statement in _late_imports(module.tree)
    ]
    assert late == []


def _late_imports(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom))
