"""Names and words: no drawer for odds and ends, no machine's path, every module says what it is for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.house import modules, tracked_texts

DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "managers"}

# Written so that this file doesn't match itself.
MACHINE = {
    "a path of the machine it was written on": re.compile(r"(?<![\w.$}])/(?:work|root)/"),
    "a package registry's host": re.compile(r"(?:pypi|pythonhosted|npmjs|anaconda)[.](?:org|com)\b|\bdownload[.]pytorch\b"),
}


def test_no_module_is_a_drawer() -> None:
    named = {module.name for module in modules() if DRAWERS & set(Path(module.name).with_suffix("").parts)}
    assert not named


def test_every_module_opens_with_what_it_is_for() -> None:
    silent = [module.name for module in modules() if module.lines and not ast.get_docstring(module.tree)]
    assert silent == []


@pytest.mark.parametrize("what", sorted(MACHINE))
def test_no_file_names(what: str) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE[what].search(line)
    ]
    assert found == []


def test_no_unfinished_work_is_left_in_comments() -> None:
    pattern = re.compile(r"#.*\b(?:TODO|FIXME|XXX|HACK)\b")
    found = [f"{name}: {match.group()}" for name, text in tracked_texts() if name.endswith(".py") for match in pattern.finditer(text)]
    assert [line for line in found if "test_names.py" not in line] == []
