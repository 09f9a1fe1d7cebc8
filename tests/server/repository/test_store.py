import os
from pathlib import Path

import pytest

from server.errors import ConfigError
from server.repository.store import Entry, Listing, Problem, Store
from tests.server.models import place


def scan(root: Path) -> Listing:
    return Store(root).scan()


def only_problem(root: Path) -> Problem:
    listing = scan(root)
    assert listing.entries == ()
    (problem,) = listing.problems
    return problem


def test_entries_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b", "a.b-c_1", "Z"):
        place(tmp_path, name)
    assert scan(tmp_path) == Listing(tuple(Entry(name, tmp_path / name, ("1",)) for name in ("Z", "a.b-c_1", "b")), ())


def test_an_empty_repository_is_fine(tmp_path: Path) -> None:
    assert scan(tmp_path) == Listing((), ())


def test_a_missing_repository_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model repository .*/none: no such folder; make it"):
        scan(tmp_path / "none")


def test_a_repository_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be read: Not a directory"):
        scan(tmp_path / "file")


def test_a_look_sees_what_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.scan().entries == ()
    place(tmp_path, "m")
    assert [entry.name for entry in store.scan().entries] == ["m"]


def test_stray_files_and_hidden_folders_are_ignored(tmp_path: Path) -> None:
    place(tmp_path, "m")
    place(tmp_path, ".m.tmp-123")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "m" / "notes").mkdir()
    (tmp_path / "m" / "2").write_text("a file, not a version")
    (tmp_path / "m" / ".3").mkdir()
    assert scan(tmp_path) == Listing((Entry("m", tmp_path / "m", ("1",)),), ())


@pytest.mark.parametrize(
    ("policy", "versions"),
    [(None, ("10",)), ("latest", ("10",)), ("all", ("2", "9", "10")), ("[9, 2]", ("2", "9")), ("[9, 9]", ("9",))],
)
def test_policies(tmp_path: Path, policy: str | None, versions: tuple[str, ...]) -> None:
    for version in ("9", "10", "2"):
        place(tmp_path, "m", version=version)
    if policy:
        (tmp_path / "m" / "model.yaml").write_text(f"versions: {{policy: {policy}}}")
    assert scan(tmp_path) == Listing((Entry("m", tmp_path / "m", versions),), ())


def test_a_version_that_the_policy_names_and_isnt_there(tmp_path: Path) -> None:
    place(tmp_path, "m", yaml="versions: {policy: [1, 7]}")
    reason = f"{tmp_path / 'm' / '7'}: no such folder, but versions.policy names it"
    assert scan(tmp_path) == Listing((Entry("m", tmp_path / "m", ("1",)),), (Problem("m", "7", reason),))


@pytest.mark.parametrize("name", ["my model", "ünï", "a+b"])
def test_names_that_cannot_stand_in_a_url(tmp_path: Path, name: str) -> None:
    place(tmp_path, name)
    problem = only_problem(tmp_path)
    assert (problem.name, problem.version) == (name, "")
    assert "a model's name is letters, digits" in problem.reason


@pytest.mark.parametrize("version", ["0", "01", "0001", "9" * 19, "\u0661"])
def test_versions_that_are_no_decimal_numbers(tmp_path: Path, version: str) -> None:
    place(tmp_path, "m", version=version)
    problem = only_problem(tmp_path)
    assert (problem.name, problem.version) == ("m", version)
    assert "a version is a decimal number from 1 without leading zeros" in problem.reason


def test_a_model_without_a_version(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert only_problem(tmp_path) == Problem("m", "", f"{tmp_path / 'm'}: no version; expected {tmp_path / 'm' / '1'} with a model in it")


def test_one_bad_entry_hides_no_other(tmp_path: Path) -> None:
    place(tmp_path, "good")
    place(tmp_path, "bad", yaml="batchin: {}")
    (tmp_path / "empty").mkdir()
    listing = scan(tmp_path)
    assert [entry.name for entry in listing.entries] == ["good"]
    assert [(problem.name, problem.version) for problem in listing.problems] == [("bad", "1"), ("empty", "")]
    assert listing.problems[0].reason.startswith(f"{tmp_path / 'bad' / 'model.yaml'}:1: batchin: unknown key 'batchin'")


def test_links_inside_the_repository_are_followed(tmp_path: Path) -> None:
    place(tmp_path, "m")
    (tmp_path / "again").symlink_to("m")
    (tmp_path / "m" / "2").symlink_to("1")
    listing = scan(tmp_path)
    assert [(entry.name, entry.versions) for entry in listing.entries] == [("again", ("2",)), ("m", ("2",))]


def test_the_repository_may_be_a_link(tmp_path: Path) -> None:
    place(tmp_path / "real", "m")
    (tmp_path / "link").symlink_to("real")
    assert [entry.name for entry in scan(tmp_path / "link").entries] == ["m"]


def test_links_out_of_the_repository_are_refused(tmp_path: Path) -> None:
    outside = place(tmp_path / "outside", "m")
    root = tmp_path / "root"
    place(root, "good")
    place(root, "half", version="2")
    (root / "whole").symlink_to(outside)
    (root / "half" / "1").symlink_to(outside / "1")
    (tmp_path / "model.yaml").write_text("")
    place(root, "config")
    (root / "config" / "model.yaml").symlink_to(tmp_path / "model.yaml")
    listing = scan(root)
    assert [(entry.name, entry.versions) for entry in listing.entries] == [("good", ("1",)), ("half", ("2",))]
    assert [(problem.name, problem.version) for problem in listing.problems] == [("config", ""), ("half", "1"), ("whole", "")]
    assert all("a link that leads out of the repository" in problem.reason for problem in listing.problems)


def test_links_that_lead_nowhere_or_in_circles(tmp_path: Path) -> None:
    place(tmp_path, "good")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("none")
    listing = scan(tmp_path)
    assert [entry.name for entry in listing.entries] == ["good"]
    assert [problem.name for problem in listing.problems] == ["circle", "nowhere"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    place(tmp_path, "good")
    place(tmp_path, "locked").chmod(0)
    try:
        listing = scan(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert [entry.name for entry in listing.entries] == ["good"]
    assert "can't be read" in listing.problems[0].reason
