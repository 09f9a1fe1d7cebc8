"""What --model may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.plan import PlanError
from exporters.sources.names import EXAMPLES, find_model, hub_cache


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
        find_model("berta", tmp_path, project=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("berta", "no model is known by that name; expected FILE.py:FACTORY or MODULE:FACTORY"),
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


def cached(home: Path, name: str, revision: str = "abc") -> Path:
    """A snapshot in the cache's layout, without its weights."""
    snapshot = home / "hub" / name / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_models_of_the_hub_are_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(PlanError, match=r"google-bert/bert-base-uncased isn't in the cache .*`hf download google-bert/bert-base-uncased`"):
        find_model("bert_base", tmp_path)
    older = cached(tmp_path, "models--bert-base-uncased")
    assert find_model("bert_base", tmp_path).hub == older
    present = cached(tmp_path, "models--google-bert--bert-base-uncased")
    assert find_model("bert_base", tmp_path).hub == present
    assert find_model("google-bert/bert-base-uncased", tmp_path).hub == present
    second = cached(tmp_path, "models--google-bert--bert-base-uncased", "def")
    assert find_model("bert_base", tmp_path).hub == older
    (present.parents[1] / "refs").mkdir()
    (present.parents[1] / "refs" / "main").write_text("def\n")
    assert find_model("bert_base", tmp_path).hub == second


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub_cache() == Path.home() / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/y")
    assert hub_cache() == Path("/y")


def test_a_folder_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    found = find_model("mine", tmp_path)
    assert (found.label, found.hub) == ("mine", tmp_path / "mine")
