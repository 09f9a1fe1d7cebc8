"""Writes the type stubs of NVIDIA's libraries that our code is checked against, from the real bindings: `make gpu-stubs`.

TensorRT's own libraries can't be fetched from a package index, but its Python bindings can: they ask for nine C symbols, which three empty
libraries give them, and then every class, member and signature can be read without a GPU. What stands in the stubs is what the bindings
say of themselves, cut to the names of NAMES; nothing is written by hand but SUPPLEMENTS, each with its reason.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools" / "gpu-stubs"
CUDA = "13.5.0"
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "createNvOnnxParser_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry", "getNvOnnxParserVersion"),
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
NAMES = frozenset(
    {
        *("Builder", "BuilderFlag", "DataType", "Dims", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine"),
        *("IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "ITensor"),
        *("ITimingCache", "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "Runtime"),
        *("TensorIOMode", "TensorLocation"),
    }
)
SUPPLEMENTS: Mapping[str, str] = {
    "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",  # by C's buffer protocol, which introspection doesn't see
    "OnnxParser": "def get_error(self, index: SupportsInt) -> ParserError: ...",  # 10's docstring lacks its signature, 11's has it
}
FUNCTIONS = (
    *("cudaDeviceGetAttribute", "cudaDriverGetVersion", "cudaFree", "cudaFreeHost", "cudaGetDeviceCount", "cudaGetDeviceProperties"),
    *("cudaGetErrorName", "cudaGetErrorString", "cudaHostAlloc", "cudaMalloc", "cudaMemGetInfo", "cudaMemcpyAsync", "cudaSetDevice"),
    *("cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaStreamSynchronize"),
)
ENUMS = ("cudaError_t", "cudaMemcpyKind", "cudaDeviceAttr")
CONSTANTS = ("cudaHostAllocDefault", "cudaStreamNonBlocking")
PROPERTIES = ("name", "major", "minor", "totalGlobalMem")
_CUDA_TYPES = {"cudaError_t": "cudaError_t", "Any": "int", "int": "int", "bytes": "bytes"}


@dataclass(frozen=True, slots=True)
class Release:
    """One release of TensorRT and where its stub lies."""

    version: str
    target: Path

    @property
    def major(self) -> str:
        return self.version.split(".")[0]


RELEASES = (
    Release("10.16.1.11", ROOT / "typings" / "tensorrt" / "__init__.pyi"),
    Release("11.4.0.106", ROOT / "tests" / "nvidia" / "tensorrt_11" / "tensorrt" / "__init__.pyi"),
)
CUDA_TARGET = ROOT / "typings" / "cuda" / "bindings" / "runtime.pyi"


def main() -> None:
    """Fetch the bindings and write all stubs."""
    for release in RELEASES:
        write(release.target, tensorrt_stub(release))
    write(CUDA_TARGET, cuda_stub())


def write(target: Path, text: str) -> None:
    """Write one stub."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    sys.stdout.write(f"{target.relative_to(ROOT)}\n")


def tensorrt_stub(release: Release) -> str:
    """The stub of one release, read from its bindings."""
    folder = fetched(f"tensorrt-cu13-bindings=={release.version}")
    libraries = _empty_libraries(folder, release.major)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(folder)}
    options = ["--inspect-mode", "-m", "tensorrt_bindings.tensorrt", "-o", str(folder / "stubs")]
    command = [sys.executable, "-c", "from mypy.stubgen import main; main()", *options]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    text = (folder / "stubs" / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    tree = ast.parse(re.sub(r"^( +@overload\n)? +def add_.*Layer: \.\.\.\n", "", text, flags=re.MULTILINE))  # one of them isn't even Python
    kept = [_pruned(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name in NAMES]
    if missing := NAMES - {node.name for node in kept}:
        raise SystemExit(f"TensorRT {release.version} has no {', '.join(sorted(missing))}")
    head = f'"""TensorRT {release.version}, the part that tidegate uses. Written by `make gpu-stubs`; don\'t edit."""\n\n'
    imports = "from collections.abc import Sequence\nfrom typing import Any, ClassVar, SupportsInt, overload\n\n"
    return head + imports + "from typing_extensions import Buffer\n\n__version__: str\n\n" + _compact(kept)


def _compact(nodes: Sequence[ast.ClassDef]) -> str:
    """A member a line."""
    text = "\n\n".join(re.sub(r"\n+", "\n", re.sub(r":\n +\.\.\.", ": ...", ast.unparse(node))) for node in nodes)
    return re.sub(r"\b(tuple|list)\b(?![\[(])", lambda match: f"{match[1]}[{'Any, ...' if match[1] == 'tuple' else 'Any'}]", text) + "\n"


def _pruned(node: ast.ClassDef) -> ast.ClassDef:
    """A class with its public members and constructor; types that aren't kept are Any."""
    body: list[ast.stmt] = [part for part in node.body if _kept(part)]
    if node.name in SUPPLEMENTS:
        added = ast.parse(SUPPLEMENTS[node.name]).body
        body = [part for part in body if getattr(part, "name", "") != getattr(added[0], "name", None)] + added
    whole = ast.ClassDef(node.name, node.bases, node.keywords, body or [ast.Pass()], node.decorator_list)
    known = {*NAMES, "Any", "Sequence", "ClassVar", "SupportsInt", "Buffer", "overload", "property"}
    for part, count in _overloads(body):
        if count == 1:  # what stubgen makes of a method whose other signature it couldn't read
            part.decorator_list = []
    renamed: ast.ClassDef = _Renamed(known | {part.name for part in body if isinstance(part, ast.ClassDef)}).visit(whole)
    return ast.fix_missing_locations(renamed)


def _overloads(body: list[ast.stmt]) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Each overloaded method and how many it's one of."""
    found = [part for part in body if isinstance(part, ast.FunctionDef) and "overload" in map(ast.unparse, part.decorator_list)]
    counts = Counter(part.name for part in found)
    return ((part, counts[part.name]) for part in found)


def _kept(part: ast.stmt) -> bool:
    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
        return not part.target.id.startswith("_")
    return isinstance(part, ast.ClassDef) or (
        isinstance(part, ast.FunctionDef) and (not part.name.startswith("_") or part.name in ("__init__", "__len__", "__getitem__"))
    )


class _Renamed(ast.NodeTransformer):
    """Annotations in the names that the stub imports or defines."""

    def __init__(self, known: set[str]) -> None:
        self._known = known | {"int", "str", "bool", "float", "list", "tuple", "dict", "object", "bytes", "slice", "None"}

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id in ("typing", "typing_extensions"):
            return self.visit_Name(ast.Name(node.attr))
        if ast.unparse(node) == "collections.abc.Sequence":
            return ast.Name("Sequence")
        return node if isinstance(node.value, ast.Name) and node.value.id in self._known else ast.Name("Any")

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return node if node.id in self._known else ast.Name("Any")

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if any(isinstance(part, ast.AnnAssign) and "__members__" in ast.unparse(part) for part in node.body):
            node.body = [part for part in node.body if _kept(part)]
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = self.visit(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        for argument in (*node.args.args, *filter(None, (node.args.vararg, node.args.kwarg))):
            argument.annotation = self.visit(argument.annotation) if argument.annotation else ast.Name("Any")
        for argument in node.args.args[:1]:
            argument.annotation = None  # self
        node.returns = self.visit(node.returns) if node.returns else ast.Name("Any")
        return node


def _empty_libraries(folder: Path, major: str) -> Path:
    libraries = folder / "lib"
    libraries.mkdir(exist_ok=True)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(libraries / soname), str(source)], check=True, capture_output=True
        )
    return libraries


def cuda_stub() -> str:
    """The stub of the CUDA runtime's bindings, from their docstrings."""
    folder = fetched(f"cuda-bindings=={CUDA}", "cuda-pathfinder")
    program = f"import tests.nvidia.stubs as stubs; print(stubs.described({FUNCTIONS!r}, {ENUMS!r}, {CONSTANTS!r}), end='')"
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def described(functions: Sequence[str], enums: Sequence[str], constants: Sequence[str]) -> str:
    """The CUDA stub's text; runs where cuda.bindings can be imported."""
    from cuda.bindings import runtime

    def lines() -> Iterator[str]:
        yield f'"""cuda.bindings.runtime {CUDA}, the part that tidegate uses. Written by `make gpu-stubs`; don\'t edit."""\n'
        yield "from enum import IntEnum\n"
        for enum in enums:
            yield f"class {enum}(IntEnum):"
            yield from (f"    {name} = {int(value)}" for name, value in getattr(runtime, enum).__members__.items())
            yield ""
        yield "class cudaStream_t:\n    def __init__(self, init_value: int = 0) -> None: ...\n    def __int__(self) -> int: ...\n"
        yield "class cudaDeviceProp:"
        for name in PROPERTIES:
            getattr(runtime.cudaDeviceProp, name)  # it must be there
            yield f"    {name}: {'bytes' if name == 'name' else 'int'}"
        yield ""
        yield from (f"{name}: int  # {int(getattr(runtime, name))}" for name in constants)
        yield ""
        yield from (_signature(name, getattr(runtime, name).__doc__) for name in functions)

    return "\n".join(lines()) + "\n"


def _signature(name: str, text: str) -> str:
    """`cudaMemcpyAsync(dst, src, size_t count, kind: cudaMemcpyKind, stream)` and its section "Returns" as a def."""
    inside = text.splitlines()[0].removeprefix(f"{name}(").removesuffix(")")
    returned = text.partition("Returns\n-------\n")[2].partition("\n\n")[0]
    kinds = [line.rpartition(" : ")[2] for line in returned.splitlines() if line and not line.startswith(" ")]
    types = [_CUDA_TYPES.get(kind, _linked(kind)) for kind in kinds]
    parameters = [_parameter(part) for part in inside.split(", ")] if inside else []
    return f"def {name}({', '.join(parameters)}) -> tuple[{', '.join(types)}]: ..."


def _linked(kind: str) -> str:
    """The type that a docstring links to: ":py:obj:`~.cudaDeviceProp`"."""
    match = re.search(r"~\.(\w+)", kind)
    return match[1] if match else "cudaError_t" if kind.startswith("cudaError_t") else "int"


def _parameter(text: str) -> str:
    if ": " in text:
        return text
    kind, _, name = text.rpartition(" ")
    return f"{name}: {'cudaStream_t' if name == 'stream' else 'int'}" if kind or name else text


def fetched(*requirements: str) -> Path:
    """A folder with the unpacked wheels of the requirements, fetched once."""
    folder = TOOLS / re.sub(r"\W+", "-", requirements[0])
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *requirements]
        subprocess.run(command, check=True, capture_output=True)
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        (folder / "done").touch()
    return folder


if __name__ == "__main__":
    main()
