"""The child's stages, in this process: whatever user code raises is told with its stage and the user's own line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exporters.sources.trace_child import StageError, Stages, attribute, declared, load_file, told, user_module
from tests.exporters.conftest import Writer


def job(user: Path, **changes: Any) -> dict[str, Any]:
    return {"file": str(user / "mine.py"), "module": None, "hub": None, "program": None, **changes}


@pytest.mark.parametrize(
    ("code", "said", "where"),
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'", "mine.py:1 in <module>"),
        ("def make(:", "SyntaxError: invalid syntax (mine.py, line 1)", ""),
        ("def f():\n    raise SystemExit(4)\nf()", "the code called exit(4)", "mine.py:2 in f"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "mine.py:1 in <module>"),
        ("1 / 0", "ZeroDivisionError: division by zero", "mine.py:1 in <module>"),
        ("import json\njson.loads('{')", "JSONDecodeError: ", "mine.py:2 in <module>"),
        ("raise Exception('one\\n\\n  two\\nthree\\nfour\\nfive')", "Exception: one two three four", "mine.py:1 in <module>"),
    ],
)
def test_errors_at_import(
    user: Path, written: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str, where: str
) -> None:
    written(code)
    monkeypatch.setattr("sys.argv", ["pytest"])
    stages = Stages(tmp_path, (user,))
    with pytest.raises(StageError, match=re.escape(said)) as caught, stages.enter("import"):
        user_module(job(user))
    assert (caught.value.stage, caught.value.where) == ("import", where)
    assert (tmp_path / "stage.txt").read_text() == "import"


def test_a_failure_keeps_the_stage_it_came_from(tmp_path: Path) -> None:
    stages = Stages(tmp_path, (tmp_path,))
    with pytest.raises(StageError) as caught, stages.enter("outer"):
        raise StageError("inner", "told")
    assert caught.value.stage == "inner"


def test_the_factory_is_found_by_its_dotted_name(user: Path, written: Writer) -> None:
    written("class Nets:\n    @staticmethod\n    def small(): return 3\ndef other(): pass\n_hidden = 1\ndef example(): return 5\n")
    module = load_file(user / "mine.py", "mine")
    assert attribute(module, "Nets.small")() == 3
    with pytest.raises(StageError, match=r"there is no 'Nets\.large' in mine; it has: Nets, example, other"):
        attribute(module, "Nets.large")
    assert (declared(module, "example"), declared(module, "dynamic")) == (5, None)


def test_lines_of_packages_are_not_the_users(tmp_path: Path) -> None:
    stages = Stages(tmp_path, (tmp_path,))
    assert stages.is_theirs(str(tmp_path / "a" / "nets.py"))
    assert not stages.is_theirs(str(tmp_path / "lib" / "site-packages" / "torch" / "nn.py"))
    assert not stages.is_theirs("/elsewhere/nets.py")


def test_an_exception_without_words_is_told_by_its_type() -> None:
    assert told(ValueError()) == "ValueError"
