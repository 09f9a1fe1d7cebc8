"""Models, weights and examples: what is taken, and what is refused with which words."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporters.sources.trace_state import RefusedError, as_arrays, as_module, check_float32, load_weights, read_example


def net() -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Linear(4, 8), norm=nn.BatchNorm1d(8), last=nn.Linear(8, 2)))


def refuses(said: str) -> Any:
    return pytest.raises(RefusedError, match=re.escape(said))


def test_a_factory_may_be_a_class_a_function_or_a_module() -> None:
    for made in (net, net(), nn.Identity):
        model = as_module(made)
        assert not model.training
        assert not any(part.requires_grad for part in model.parameters())


def test_what_is_no_factory() -> None:
    with refuses("the factory is an object of type int; expected a function or class that takes no arguments"):
        as_module(3)
    with refuses("the factory gave an object of type int; expected a torch.nn.Module"):
        as_module(lambda: 3)


def test_only_float32_weights() -> None:
    check_float32(net())
    with refuses("the model holds torch.float16 weights; expected torch.float32: call .float() in the factory"):
        check_float32(net().half())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_state_dicts_as_people_save_them(tmp_path: Path, wrap: Any) -> None:
    source, target = net(), net()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))


def test_safetensors(tmp_path: Path) -> None:
    source, target = net(), net()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(source.state_dict()["last.weight"], target.state_dict()["last.weight"])
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    with refuses("bad.safetensors isn't a safetensors file"):
        load_weights(target, tmp_path / "bad.safetensors")


def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    state = net().state_dict()
    state["last.weight"] = torch.zeros(3, 8)
    del state["first.bias"]
    state.update({f"extra.{index}": torch.zeros(1) for index in range(7)})
    torch.save(state, tmp_path / "w.pt")
    with refuses(
        "w.pt doesn't fit the model: 1 missing: first.bias; 7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, … (2 more); "
        "1 of another shape: last.weight is [3, 8], expected [2, 8]"
    ):
        load_weights(net(), tmp_path / "w.pt")


def test_a_full_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pt")
    with refuses("or a full pickle, which could run any code when loaded and is refused"):
        load_weights(net(), tmp_path / "model.pt")

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "went off",)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with refuses("is refused"):
        load_weights(net(), tmp_path / "bomb.pt")
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut"])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(RefusedError, match=r"w\.pt isn't"):
        load_weights(net(), tmp_path / "w.pt")


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "w.pt")
    with refuses("w.pt holds a list, not a state dict"):
        load_weights(net(), tmp_path / "w.pt")


def test_examples_from_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.ones((2, 3), np.float32), mask=np.array([True, False]))
    found = as_arrays(read_example(tmp_path / "x.npz"))
    assert list(found) == ["image", "mask"]
    assert found["image"].dtype == np.float32
    torch.save({"image": torch.ones(2, 3)}, tmp_path / "x.pt")
    assert as_arrays(read_example(tmp_path / "x.pt"))["image"].shape == (2, 3)
    torch.save((torch.ones(2), torch.zeros(3)), tmp_path / "pair.pt")
    assert list(as_arrays(read_example(tmp_path / "pair.pt"))) == ["arr_0", "arr_1"]
    np.save(tmp_path / "x.npy", np.ones(3))
    assert list(as_arrays(read_example(tmp_path / "x.npy"))) == ["arr_0"]


def test_examples_that_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for name in ("pickled.npz", "cut.npz"):
        with refuses(f"{name} can't be read as plain arrays"):
            read_example(tmp_path / name)
    for given, said in (
        (None, "there is no example: give --example FILE.npz"),
        (3, "the example is an object of type int; expected arrays by input name"),
        ({}, "the example is an object of type dict; expected arrays by input name"),
        ({"x": ["a"]}, "example input 'x' holds <U1; expected numbers or booleans"),
        ({"x": np.zeros((0, 3))}, "example input 'x' is empty: shape [0, 3]"),
        ({"x": np.zeros(2, complex)}, "holds complex128"),
    ):
        with refuses(said):
            as_arrays(given)
