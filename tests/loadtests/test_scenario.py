"""Scenarios: what ships can be read, what is wrong is named with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests.quantities import Distribution
from loadtests.scenario import SHIPPED, find_scenario, read_scenario
from server.errors import ConfigError


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_scenario_is_read_and_described(file: Path) -> None:
    scenario = read_scenario(find_scenario(file.stem))
    assert scenario.name == file.stem
    assert scenario.description


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mix: []", "mix"),
        ("mix: [{model: m}]\nduraton: 3s", ":2: duraton: unknown key 'duraton'; did you mean 'duration'?"),
        ("mix:\n  - model: m\n    rows: [8, 1]", ":3: mix.0.rows: min 8 is more than max 1"),
        ("mix: [{model: m}]\narrivals: {rate: fast}", "expected requests a second such as 200/s"),
        ("mix: [{model: m}]\narrivals: {shape: {kind: ramp}}", "shape ramp needs `to`"),
        ("mix: [{model: m}]\narrivals: {process: mmpp, burst: 20, burst_share: 10%}", "burst 20 x burst_share 0.1 must be under 1"),
        ("mix: [{model: m}]\narrivals: {rate: 9}\nclosed: {users: 2}", "not both"),
        ("mix: [{model: m}]\nslo: {goodput: 99%}", "goodput needs `within`"),
        ("mix: [{model: m}]\nduration: 10h\narrivals: {rate: 1000/s}", "requests are due, more than 2,000,000"),
        ("mix: [{model: m, values: {x: {low: 2, high: 1}}}]", "low 2 is more than high 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"scenario\.yaml:") as caught:
        read_scenario(file)
    assert said in str(caught.value)


def test_an_unknown_name_tells_what_ships() -> None:
    with pytest.raises(ConfigError, match=r"no scenario 'nope'.*steady"):
        find_scenario("nope")


def test_what_is_laid_over_goes_into_its_section(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mix: [{model: m}]\narrivals: {rate: 9, process: uniform}")
    scenario = read_scenario(file, {"arrivals": {"rate": 20}, "duration": "2s"})
    assert scenario.open is not None
    assert (scenario.name, scenario.open.rate, scenario.open.process, scenario.duration) == ("mine", 20, "uniform", 2)


def test_distributions_stay_in_their_bounds() -> None:
    random = np.random.default_rng(1)
    drawn = Distribution(kind="lognormal", median=28, sigma=0.6, min=8, max=128).draw(random, 5000)
    assert 8 <= drawn.min() <= drawn.max() <= 128
    assert float(np.median(drawn)) == pytest.approx(28, abs=2)
    assert set(Distribution.model_validate([2, 4]).draw(random, 200)) == {2, 3, 4}
    assert set(Distribution.model_validate(5).draw(random, 3)) == {5}
