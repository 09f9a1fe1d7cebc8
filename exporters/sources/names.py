"""What `--model` may be: FILE.py:FACTORY, MODULE:FACTORY, or the short name of one of the project's examples."""

from __future__ import annotations

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

_FORMS = "FILE.py:FACTORY or MODULE:FACTORY, as in nets.py:Net"
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def find_model(text: str, folder: Path, project: Path = PROJECT) -> ModelRef:
    """The model that `text` names, seen from `folder`. Raises PlanError that lists what can be given."""
    if text in EXAMPLES:
        return _example(text, project)
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


def _example(name: str, project: Path) -> ModelRef:
    where, _, factory = EXAMPLES[name].partition(":")
    path = project / where
    if not path.is_file():
        raise PlanError(f"--model {name}: that example comes with the project's source, not with the package; expected {_FORMS}")
    return ModelRef(name, factory, (path.parent, project), file=path)


def _expected(project: Path) -> str:
    here = [name for name, where in EXAMPLES.items() if (project / where.partition(":")[0]).is_file()]
    return f"{_FORMS}, or one of the examples: {', '.join(here)}" if here else _FORMS
