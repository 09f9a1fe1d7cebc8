"""Named metrics read families that there are, by labels that those have: the server's catalogue decides."""

from __future__ import annotations

import re

import pytest

from monitor.metrics.families import EXPORTED, FAMILIES
from monitor.metrics.named import NAMED
from monitor.metrics.query import Over, Select, selects
from monitor.metrics.shapes import Ask, Named
from server.metrics.catalogue import CATALOGUE, Metric

OF_A_SCRAPE = {"instance", "job", "le"}
"""Labels that the scrape, or a histogram's own exposition, adds to whatever a server exports."""


def read(named: Named) -> list[tuple[str, Metric, set[str]]]:
    """Each series that a named metric selects: its name, its family, and the labels that are matched."""
    query = named.build(Ask((), named.by, named.window, named.q))
    found = []
    for select, _ in selects(query):
        family = select.name if select.name in FAMILIES else re.sub(r"_(bucket|sum|count)$", "", select.name)
        found.append((select.name, FAMILIES[family], {matcher.name for matcher in select.matchers}))
    return found


@pytest.mark.parametrize("name", NAMED)
def test_a_named_metric_reads_what_is_there(name: str) -> None:
    named = NAMED[name]
    for series, family, matched in read(named):
        assert family.name in named.families, f"{name} reads {family.name}, which its families don't name"
        own = {*family.labels, *OF_A_SCRAPE}
        assert matched <= own, f"{name} matches {sorted(matched - own)} of {series}"
        assert set(named.by) <= own, f"{name} is told apart by {sorted(set(named.by) - own)}, which {family.name} doesn't have"
        assert (series != family.name) == (family.kind == "histogram"), f"{name} reads {series} of a {family.kind}"


def test_the_catalogue_wins_over_what_was_written_down_before_it() -> None:
    assert all(FAMILIES[name] is metric for name, metric in CATALOGUE.items())
    assert set(CATALOGUE) <= EXPORTED
    assert {name for name in FAMILIES if name.startswith("tidegate_")} >= {
        family for named in NAMED.values() for family in named.families if family.startswith("tidegate_")
    }


def test_a_family_that_was_misspelt_would_be_seen() -> None:
    """The check above follows the query, not the list beside it."""
    wrong = Named(
        "x", NAMED["inference_latency"].unit, "", lambda ask: Over("rate", Select("tidegate_nothing", ()), 60.0), ("tidegate_nothing",)
    )
    with pytest.raises(KeyError, match="tidegate_nothing"):
        read(wrong)
