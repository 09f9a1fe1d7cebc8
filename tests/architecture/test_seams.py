"""The seams that others build on: small, and their public names are changed on purpose only."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from server import errors
from server.errors import TidegateError
from tests.architecture.house import ROOT

SEAMS = {
    "server.backends.base": {"VariantSpec", "Backend", "Streaming"},
    "server.lanes.base": {"Lane", "Loss", "LossReason", "OnLoss", "OnResult", "RunResult"},
    "server.messages": {
        "BatchFacts",
        "CancelHandle",
        "Deadline",
        "InferRequest",
        "InferResponse",
        "Layout",
        "ModelKey",
        "NO_PARAMETERS",
        "OnResponse",
        "Placed",
        "Principal",
        "RegionSlice",
        "RequestedOutput",
        "Scalar",
        "Shared",
        "SharedInput",
        "TraceContext",
    },
    "server.state.base": {"Counted", "Counts", "Document", "Event", "Fence", "MOST_EVENTS", "MOST_TEXT", "StateStore", "Swap"},
    "server.tensors": {"DTYPES", "DType", "Tensor", "TensorSpec", "dtype_named", "dtype_of", "dtype_of_onnx", "elements"},
}

PROTOCOLS = {
    "server.backends.base:Backend": {"inputs", "outputs", "version", "open", "run", "close"},
    "server.backends.base:Streaming": {"stream"},
    "server.lanes.base:Lane": {"kind", "name", "depth", "inputs", "outputs", "buffer", "submit", "successor", "watch", "renew", "close"},
    "server.messages:CancelHandle": {"cancel"},
    "server.state.base:StateStore": {"read", "put", "write", "swap", "begin", "count", "counted", "end", "append", "events", "close"},
}


def public_names(module: str) -> set[str]:
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    return {name for statement in tree.body for name in _defined(statement) if not name.startswith("_")}


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("module", sorted(SEAMS))
def test_public_names(module: str) -> None:
    assert public_names(module) == SEAMS[module]


@pytest.mark.parametrize("seam", sorted(PROTOCOLS))
def test_what_an_implementation_must_have(seam: str) -> None:
    module, name = seam.split(":")
    protocol = getattr(import_module(module), name)
    members = {member for member in (*vars(protocol), *protocol.__annotations__) if not member.startswith("_")}
    assert members == PROTOCOLS[seam]


@pytest.mark.parametrize("path", ["server/backends/base.py", "server/lanes/base.py"])
def test_a_seam_is_under_a_hundred_lines(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) < 100


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn = {
        line.split()[0]
        for line in (errors.__doc__ or "").replace("│", " ").replace("├──", " ").replace("└──", " ").splitlines()[2:]
        if line.strip()
    }
    assert drawn == {name for name in public_names("server.errors") if issubclass(getattr(errors, name), TidegateError)}


def test_every_error_has_a_reason_of_its_own() -> None:
    named = [getattr(errors, name) for name in public_names("server.errors")]
    reasons = [error.reason for error in named if "reason" in vars(error)]
    assert len(reasons) == len(set(reasons)) == len(named)
    assert all(Path(reason).name == reason and reason.islower() for reason in reasons)
