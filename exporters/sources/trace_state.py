"""The user's model, weights and example, made ready for tracing; a part of trace_child's process, it imports nothing of tidegate."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import prune

TORCH_VERSION = str(torch.__version__)

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PARALLEL = "module."
_SHOWN = 5
_SAVEZ = "as numpy.savez(FILE, image=…) writes them"
_FACTORY = "expected a function or class that takes no arguments and gives a torch.nn.Module"


class RefusedError(Exception):
    """What the user gave can't be used; the message stands by itself."""


class Program(nn.Module):
    """A program that was traced before (torch.export's, or TorchScript), called as the module that it was. It stays in its mode."""

    def __init__(self, inner: Callable[..., Any], input_names: tuple[str, ...], keywords: frozenset[str]) -> None:
        super().__init__()
        self.inner = inner
        self.input_names = input_names
        self._keywords = keywords

    def forward(self, *tensors: Tensor, **named: Tensor) -> Any:
        given = dict(zip(self.input_names, tensors, strict=False)) | named
        plain = [given[name] for name in self.input_names if name in given and name not in self._keywords]
        return self.inner(*plain, **{name: given[name] for name in self._keywords if name in given})

    def train(self, mode: bool = True) -> Self:
        return self


def program_module(path: Path) -> ModuleType:
    """A module with the program as `make`; of torch.export's also what it was exported with, and the axes that it left open."""
    module = ModuleType(path.stem)
    if path.suffix == ".pt2":
        found = _load_exported(path)
        vars(module)["make"] = lambda: Program(
            found.module(), _input_names(found), frozenset(found.example_inputs[1] if _has(found) else ())
        )
        if _has(found):
            vars(module)["example"] = lambda: dict(zip(_input_names(found), _example_inputs(found), strict=True))
        vars(module)["dynamic"] = lambda: _open_axes(found)
        return module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise RefusedError(f"{path.name} isn't a TorchScript file: {str(error).strip().splitlines()[0][:200]}") from error
    names = tuple(argument.name for argument in script.forward.schema.arguments[1:])
    vars(module)["make"] = lambda: Program(script.eval(), names, frozenset())
    return module


def _load_exported(path: Path) -> Any:
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, OSError, KeyError, AssertionError, zipfile.BadZipFile) as error:
        raise RefusedError(f"{path.name} isn't a program that torch.export.save wrote: {str(error).strip()[:200]}") from error


def _has(found: Any) -> bool:
    return found.example_inputs is not None


def _input_names(found: Any) -> tuple[str, ...]:
    return tuple(found.graph_signature.user_inputs)


def _example_inputs(found: Any) -> list[Any]:
    plain, named = found.example_inputs
    return [*plain, *named.values()]


def _open_axes(found: Any) -> dict[str, dict[int, int | None]]:
    """The axes beside the first that a program leaves open, with their greatest length."""
    axes: dict[str, dict[int, int | None]] = {}
    for node in found.graph.nodes:
        if node.op == "placeholder" and node.name in _input_names(found):
            for axis, size in enumerate(node.meta["val"].shape):
                if axis and not isinstance(size, int):
                    most = found.range_constraints[size.node.expr].upper
                    axes.setdefault(node.name, {})[axis] = int(most) if most.is_Integer else None
    return axes


def as_module(made: Any) -> nn.Module:
    """The model that a factory makes (a module, a class or a function without arguments), in evaluation mode on the CPU."""
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise RefusedError(f"the factory is an object of type {type(made).__name__}; {_FACTORY}")
        made = made()
    if not isinstance(made, nn.Module):
        raise RefusedError(f"the factory gave an object of type {type(made).__name__}; expected a torch.nn.Module")
    return made.cpu().eval().requires_grad_(False)


def check_float32(model: nn.Module) -> None:
    """Refuse what can't be exported as FP32."""
    tensors = [*model.parameters(), *model.buffers()]
    odd = {str(tensor.dtype) for tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float32}
    if odd:
        raise RefusedError(f"the model holds {', '.join(sorted(odd))} weights; expected torch.float32: call .float() in the factory")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict (.safetensors, or what torch.save wrote of one), strictly. Nothing is unpickled but tensors."""
    state = _state_dict(path)
    wanted = model.state_dict()
    if all(name.startswith(_PARALLEL) for name in state) and not any(name.startswith(_PARALLEL) for name in wanted):
        state = {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}
    faults = _faults(wanted, state)
    if faults:
        raise RefusedError(f"{path.name} doesn't fit the model: {'; '.join(faults)}")
    model.load_state_dict(state)


def _state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    found = _load(path)
    if isinstance(found, Mapping) and not _all_tensors(found):
        found = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not _all_tensors(found):
        raise RefusedError(
            f"{path.name} holds a {type(found).__name__}, not a state dict: expected what torch.save(model.state_dict(), FILE) writes"
        )
    return dict(found)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise RefusedError(f"{path.name} isn't a safetensors file: {error}") from error


def _load(path: Path) -> Any:
    """torch.load that unpickles tensors and plain containers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{path.name} isn't plain tensors: it is damaged, or a full pickle, which could run any code when loaded and is refused. "
            f"Where you trust it, load it yourself and save its tensors: torch.save(model.state_dict(), {path.name!r})"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RefusedError(f"{path.name} isn't a file that torch.save wrote: {reason}") from error


def _all_tensors(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())


def _faults(wanted: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting, each with the first few names."""
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and isinstance(tensor, Tensor) and state[name].shape != tensor.shape
    ]
    listed = (
        ("missing", [name for name in wanted if name not in state]),
        ("unexpected", [name for name in state if name not in wanted]),
        ("of another shape", shapes),
    )
    return [f"{len(names)} {what}: {_some(names)}" for what, names in listed if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else "")


def prune_channels(model: nn.Module, share: float) -> dict[str, int]:
    """Set the output channels of least L2 norm to zero, `share` of them in each convolution and linear layer but the last, which gives
    the answer. Returns how many in which. Raises RefusedError where there's none."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    found: dict[str, int] = {}
    for name, layer in layers[:-1]:
        count = int(share * layer.weight.shape[0])
        if count:
            prune.ln_structured(layer, "weight", amount=count, n=2, dim=0)  # type: ignore[no-untyped-call]
            gone = (layer.weight.detach().flatten(1) == 0).all(dim=1)
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
            layer.weight.requires_grad_(False)
            if layer.bias is not None:
                layer.bias[gone] = 0.0
            found[name] = count
    if not found:
        raise RefusedError(
            f"--prune {share:g} takes no whole channel of any layer but the last: there are {len(layers)} layers with weights"
        )
    return found


def work_key(model: nn.Module, arrays: Mapping[str, NDArray[Any]], files: Iterable[Path], more: str) -> str:
    """A hash of all that a trace comes from: the weights as they are loaded, arrays, the files' content, and a text."""
    digest = hashlib.sha256(f"{TORCH_VERSION}\n{model}\n{more}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for path in sorted(files):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read_example(path: Path) -> Any:
    """Example inputs from an .npz (arrays by name), an .npy (one array) or a .pt file (a dict of tensors, several tensors, or one)."""
    if path.suffix not in (".npz", ".npy"):
        return _load(path)
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RefusedError(f"{path.name} can't be read as plain arrays: {error}") from error


def as_arrays(given: Any) -> dict[str, NDArray[Any]]:
    """Example inputs as numpy arrays by name; `arr_0`, `arr_1`, … (numpy's own names) where they came without."""
    if given is None:
        raise RefusedError(
            "there is no example: give --example FILE.npz with an array for each input, or define example() beside the factory"
        )
    if isinstance(given, Tensor | np.ndarray):
        given = (given,)
    if isinstance(given, tuple | list):
        given = {f"arr_{index}": value for index, value in enumerate(given)}
    if not isinstance(given, Mapping) or not given:
        raise RefusedError(f"the example is an object of type {type(given).__name__}; expected arrays by input name ({_SAVEZ})")
    return {str(name): _as_array(str(name), value) for name, value in given.items()}


def _as_array(name: str, value: Any) -> NDArray[Any]:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise RefusedError(f"example input {name!r} holds {array.dtype}; expected numbers or booleans")
    if array.size == 0:
        raise RefusedError(f"example input {name!r} is empty: shape {list(array.shape)}")
    return array
