"""The project's own source as data, for the tests beside this file."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("server", "exporters", "monitor", "loadtests")
Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One source file. `name` is its path from the root, as it's written in a table of waivers."""

    path: Path
    name: str
    lines: int
    tree: ast.Module

    @property
    def dotted(self) -> str:
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method. `name` is its module's name, a colon and its own, with its class."""

    name: str
    node: Definition

    @property
    def lines(self) -> int:
        return (self.node.end_lineno or 0) - self.node.lineno + 1

    @property
    def parameters(self) -> list[str]:
        arguments = self.node.args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg not in ("self", "cls")]

    @property
    def is_command(self) -> bool:
        """Whether Typer makes a command of it: its parameters are the command's flags."""
        return any("command(" in ast.unparse(decorator) or "callback(" in ast.unparse(decorator) for decorator in self.node.decorator_list)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the packages, and the command."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.name.endswith("_pb2.py"))
    return tuple(_module(path) for path in (*paths, ROOT / "tidegate.py"))


def _module(path: Path) -> Module:
    text = path.read_text()
    return Module(path, path.relative_to(ROOT).as_posix(), text.count("\n"), ast.parse(text))


@cache
def functions() -> tuple[Function, ...]:
    """Every function and method of every module, nested ones too."""
    return tuple(function for module in modules() for function in _functions(module.tree, f"{module.name}:"))


def _functions(parent: ast.AST, prefix: str) -> Iterator[Function]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Definition):
            yield Function(prefix + node.name, node)
        yield from _functions(node, f"{prefix}{node.name}." if isinstance(node, Definition | ast.ClassDef) else prefix)


@cache
def tracked_texts() -> tuple[tuple[str, str], ...]:
    """Name and text of every file that git tracks and that is text. Empty outside a checkout."""
    if not (ROOT / ".git").exists():
        return ()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    raw = ((path, path.read_bytes()) for path in paths if path.is_file())
    return tuple((path.relative_to(ROOT).as_posix(), data.decode()) for path, data in raw if b"\0" not in data)


@cache
def contracts() -> tuple[dict[str, Any], ...]:
    """The import contracts of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return tuple(project["tool"]["importlinter"]["contracts"])
