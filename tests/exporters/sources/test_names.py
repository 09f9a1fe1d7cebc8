"""What --model may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.plan import PlanError
from exporters.sources.names import EXAMPLES, find_model


def test_a_file_and_a_factory(tmp_path: Path) -> None:
    (tmp_path / "nets.py").touch()
    found = find_model("nets.py:Net.small", tmp_path)
    assert (found.label, found.factory, found.file, found.folders) == ("nets.py:Net.small", "Net.small", tmp_path / "nets.py", (tmp_path,))


def test_a_module_is_looked_for_from_the_working_folder(tmp_path: Path) -> None:
    found = find_model("server.nets:make", tmp_path)
    assert (found.module, found.file, found.folders) == ("server.nets", None, (tmp_path,))


def test_an_example_of_the_project(tmp_path: Path) -> None:
    for where in EXAMPLES.values():
        path = tmp_path / where.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_model("digits", Path("/"), project=tmp_path)
    assert found.file == tmp_path / "examples/models/digits.py"
    assert found.factory == "build"
    with pytest.raises(PlanError, match="or one of the examples: digits, minilm, mobilenet_v2"):
        find_model("bert_base", tmp_path, project=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bert_base", "no model is known by that name; expected FILE.py:FACTORY or MODULE:FACTORY"),
        ("digits", "comes with the project's source, not with the package"),
        ("nets.py", "as in nets.py:Net"),
        ("nets.py:Net", "no file"),
        ("nets.py:", "isn't the name of a function"),
        ("nets.py:Net()", "isn't the name of a function"),
        ("../nets:Net", "neither a .py file nor a module's name"),
        (":Net", "neither a .py file nor a module's name"),
        ("", "no model is known"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        find_model(text, tmp_path, project=tmp_path)
