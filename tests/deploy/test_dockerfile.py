"""The Dockerfile and what travels to its builder: hadolint is content, each image keeps the policy. Nothing is built here (make image)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.tools import run

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "gpu", "monitor", "exporter")


@dataclass(slots=True)
class Stage:
    """One stage: what it builds on, and its instructions as (word, rest)."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for said, rest in self.lines if said == word]


def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    found: dict[str, Stage] = {}
    for word, rest in re.findall(r"^([A-Z]+) +(.*)$", text, re.MULTILINE):
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[name] = Stage(name, base)
        elif found:
            list(found.values())[-1].lines.append((word, rest))
    return found


def chain(target: str) -> list[Stage]:
    """A target and what it is built on, the target first."""
    found, here = stages(), target
    result = []
    while here in found:
        result.append(found[here])
        here = found[here].base
    return result


def test_hadolint_is_content() -> None:
    assert run("hadolint", "--failure-threshold", "style", ROOT / "Dockerfile") == ""


def test_the_targets_are_these_and_cpu_is_built_where_none_is_named() -> None:
    assert set(TARGETS) <= set(stages())
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_keeps_the_policy(target: str) -> None:
    said = [line for stage in chain(target) for line in stage.lines]
    words = [word for word, _ in said]
    assert ("USER", "10001:10001") in said
    assert "RUN" not in words, "a runtime stage installs nothing: what it needs is copied from a stage of its own"
    assert "ADD" not in words
    assert all("--from=" in rest for word, rest in said if word == "COPY")
    assert ("STOPSIGNAL", "SIGTERM") in said
    assert ("ENTRYPOINT", '["tidegate"]') in said, "as a list: the server is process 1 and gets SIGTERM itself"
    assert words.count("HEALTHCHECK") == 1
    labels = " ".join(rest for word, rest in said if word == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


@pytest.mark.parametrize("target", TARGETS)
def test_bases_are_build_arguments(target: str) -> None:
    assert re.fullmatch(r"\$\{(PYTHON|GPU)_IMAGE\}", chain(target)[-1].base)


def test_what_is_installed_is_pinned_and_pip_leaves() -> None:
    for name, stage in stages().items():
        if name.endswith("-packages"):
            (line,) = stage.all("RUN")
            assert "constraints.txt" in line
            assert "--no-cache-dir" in line
            assert line.rstrip().endswith("pip uninstall --yes --quiet setuptools pip")


def test_the_gpu_images_packages_are_pinned_to_nvidias_libraries_too() -> None:
    """What onnxruntime-gpu's extras draw in isn't in constraints.txt, which no GPU-less environment needs."""
    (line,) = stages()["gpu-packages"].all("RUN")
    assert "--constraint /src/constraints-gpu.txt" in line
    pins = [pin for pin in (ROOT / "constraints-gpu.txt").read_text().splitlines() if not pin.startswith("#")]
    assert all(re.fullmatch(r"nvidia-[a-z0-9-]+==[0-9.]+", pin) for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cufft", "nvidia-curand", "nvidia-cudnn-cu13"} <= names
    others = {pin.partition("==")[0] for pin in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not names & others


def test_the_server_images_have_no_extra_but_their_own() -> None:
    extras = {name: re.findall(r"\[([a-z,]+)\]", " ".join(stage.all("RUN"))) for name, stage in stages().items() if "packages" in name}
    assert extras == {
        "cpu-packages": ["cpu,redis"],
        "gpu-packages": ["gpu,redis"],
        "monitor-packages": ["monitor"],
        "exporter-packages": ["gpu,export"],
    }


def test_only_what_is_named_travels_to_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    used = {name for rest in stages()["wheel"].all("COPY") for name in rest.split()[:-1]}
    assert sent == used
    assert not {name for name in sent if not (ROOT / name).exists()}
