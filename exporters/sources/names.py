"""What `--model` may be: FILE.py:FACTORY, MODULE:FACTORY, FILE.onnx, a saved program, a Hugging Face folder, a model in its local cache,
or an example's name.

Nothing is fetched: what isn't on this machine is an error that says how to get it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from exporters.plan import ModelRef, PlanError

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "digits": "examples/models/digits.py:build",
        "minilm": "examples/models/minilm.py:build",
        "mobilenet_v2": "examples/models/mobilenet_v2.py:build",
    }
)
"""Short names and where their factories are in a checkout of the project; an installed wheel doesn't have them."""

HUB: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bert_base": ("google-bert/bert-base-uncased", "bert-base-uncased"),
        "bert_large": ("google-bert/bert-large-uncased", "bert-large-uncased"),
        "distilbert": ("distilbert/distilbert-base-uncased", "distilbert-base-uncased"),
        "distilroberta": ("distilbert/distilroberta-base", "distilroberta-base"),
        "minilm": ("sentence-transformers/all-MiniLM-L6-v2",),
        "minilm_l12": ("sentence-transformers/all-MiniLM-L12-v2",),
        "mpnet_base": ("sentence-transformers/all-mpnet-base-v2",),
        "roberta_base": ("FacebookAI/roberta-base", "roberta-base"),
    }
)
"""Short names of models on the Hugging Face hub, each with its present name there and the one it had before."""

PROGRAMS = (".pt2", ".ts", ".jit", ".torchscript")
"""What torch.export saves, and what TorchScript is called by; a .pt is too often something else."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_FORMS = "FILE.py:FACTORY or MODULE:FACTORY, as in nets.py:Net, FILE.onnx, FILE.pt2, FILE.ts, a Hugging Face folder or ORGANISATION/MODEL"
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def find_model(text: str, folder: Path, project: Path = PROJECT) -> ModelRef:
    """The model that `text` names, seen from `folder`. Raises PlanError that lists what can be given."""
    if text in EXAMPLES and (text not in HUB or (project / EXAMPLES[text].partition(":")[0]).is_file()):
        return _example(text, project)
    if text and (folder / text / "config.json").is_file():
        return ModelRef(text, "make", (), hub=(folder / text).resolve())
    if text in HUB or _HUB_NAME.fullmatch(text):
        return ModelRef(text, "make", (), hub=_cached(text, HUB.get(text, (text,))))
    if text.endswith((".onnx", *PROGRAMS)):
        path = (folder / text).resolve()
        if not path.is_file():
            raise PlanError(f"--model {text}: no file {path}")
        onnx = path.suffix == ".onnx"
        return ModelRef(path.name, "make", (), onnx=path if onnx else None, program=None if onnx else path)
    where, colon, factory = text.rpartition(":")
    if not colon:
        if text.endswith(".py"):
            raise PlanError(f"--model {text}: say which function or class of the file makes the model, as in {text}:Net")
        raise PlanError(f"--model {text}: no model is known by that name; expected {_expected(project)}")
    if not _DOTTED.fullmatch(factory):
        raise PlanError(f"--model {text}: {factory!r} isn't the name of a function or class; expected {_FORMS}")
    if where.endswith(".py"):
        path = (folder / where).resolve()
        if not path.is_file():
            raise PlanError(f"--model {text}: no file {path}")
        return ModelRef(f"{path.name}:{factory}", factory, (path.parent,), file=path)
    if not _DOTTED.fullmatch(where):
        raise PlanError(f"--model {text}: {where!r} is neither a .py file nor a module's name; expected {_FORMS}")
    return ModelRef(text, factory, (folder.resolve(),), module=where)


def hub_cache() -> Path:
    """Where Hugging Face's own tools keep what they fetched."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cached(text: str, names: tuple[str, ...]) -> Path:
    """The snapshot of a model in the cache: that of `main`, else the only one. Raises PlanError where there's none."""
    for name in names:
        entry = hub_cache() / f"models--{name.replace('/', '--')}"
        reference = entry / "refs" / "main"
        found = [entry / "snapshots" / reference.read_text().strip()] if reference.is_file() else sorted(entry.glob("snapshots/*"))
        if len(found) == 1 and (found[0] / "config.json").is_file():
            return found[0]
    raise PlanError(
        f"--model {text}: {names[0]} isn't in the cache {hub_cache()}, and tidegate fetches nothing; "
        f"`hf download {names[0]}` brings it there, or give a folder that has its config.json and model.safetensors"
    )


def _example(name: str, project: Path) -> ModelRef:
    where, _, factory = EXAMPLES[name].partition(":")
    path = project / where
    if not path.is_file():
        raise PlanError(f"--model {name}: that example comes with the project's source, not with the package; expected {_FORMS}")
    return ModelRef(name, factory, (path.parent, project), file=path)


def _expected(project: Path) -> str:
    here = [name for name, where in EXAMPLES.items() if (project / where.partition(":")[0]).is_file()]
    return f"{_FORMS}, or one of the examples: {', '.join(here)}" if here else _FORMS
