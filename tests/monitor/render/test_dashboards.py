"""The dashboards: what is on them, and what Grafana's own types and Prometheus' parser say of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from monitor.metrics.families import EXPORTED
from monitor.render.grafana.dashboards import BOARDS, dashboards
from monitor.render.grafana.panels import VARIABLES, Panel, families
from server.metrics.catalogue import CATALOGUE
from tests.monitor.files import EXAMPLE, rules
from tests.monitor.render.boards import Board, boards, everything, expressions, filled, panels
from tests.tools import NODE_MODULES, fetch, run

KEYS = [board.key for board in BOARDS]


@pytest.fixture
def made(tmp_path: Path) -> Mapping[str, Board]:
    return boards(tmp_path, everything())


def test_the_four(made: Mapping[str, Board]) -> None:
    assert {board["uid"]: board["title"] for board in made.values()} == {
        "tidegate-overview": "tidegate: overview",
        "tidegate-model": "tidegate: model",
        "tidegate-precision": "tidegate: precision and canary",
        "tidegate-gpu": "tidegate: GPU",
    }


@pytest.mark.parametrize("key", KEYS)
def test_the_layout(made: Mapping[str, Board], key: str) -> None:
    board = made[key]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert not overlapping([panel["gridPos"] for panel in board["panels"]])
    lines = [panel["gridPos"]["y"] for panel in board["panels"]]
    assert lines == sorted(lines), "rows come in their order"
    (own,) = [each for each in BOARDS if each.key == key]
    titles = [panel.title for _, contents in own.rows for panel in contents]
    assert len(set(titles)) == len(titles)


def overlapping(places: list[dict[str, int]]) -> list[tuple[int, int]]:
    cells: set[tuple[int, int]] = set()
    twice = []
    for place in places:
        inside = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        twice += sorted(cells & inside)
        cells |= inside
    return twice


@pytest.mark.parametrize("key", KEYS)
def test_the_variables_are_those_that_the_queries_use(made: Mapping[str, Board], key: str) -> None:
    board = made[key]
    names = [variable["name"] for variable in board["templating"]["list"]]
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(board)))) - {"__rate_interval"}
    assert names[0] == "datasource"
    assert used == set(names[1:]) <= set(VARIABLES)
    for variable in board["templating"]["list"][1:]:
        family, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label == variable["name"]
        assert family in CATALOGUE
        assert label in (*CATALOGUE[family].labels, "instance")


@pytest.mark.parametrize("key", KEYS)
def test_every_panel_tells_something_and_asks_the_chosen_source(made: Mapping[str, Board], key: str) -> None:
    for panel in panels(made[key]):
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == [chr(ord("A") + index) for index in range(len(panel["targets"]))]
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None
        values = [step["value"] for step in steps[1:]]
        assert values == sorted(values), panel["title"]


@pytest.mark.parametrize("key", KEYS)
def test_the_others_are_a_click_away_and_alerts_are_seen_on_each(made: Mapping[str, Board], key: str) -> None:
    board = made[key]
    (link,) = board["links"]
    assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
    assert set(link["tags"]) <= set(board["tags"])
    alerts = board["annotations"]["list"][0]
    assert alerts["target"]["expr"] == 'ALERTS{alertstate="firing", alertname!="Watchdog"}'
    uids = {f"/d/{other['uid']}" for other in made.values()}
    linked = [each["url"] for panel in panels(board) for each in panel["fieldConfig"]["defaults"].get("links", ())]
    assert {url.partition("?")[0] for url in linked} <= uids
    assert bool(linked) == (key == "overview")


def test_what_the_rules_watch_stands_where_it_belongs_with_its_thresholds(tmp_path: Path) -> None:
    text = """\
pack: false
watchdog: false
metrics:
  - {name: inference_latency, threshold: 200ms}
  - {name: inference_latency, threshold: 1s, alert_level: CRITICAL}
  - {name: throughput, threshold: 10, alert_level: CRITICAL}
  - {name: gpu_utilization, threshold: 90%}
  - {name: memory, threshold: 1GiB}
  - {name: drift, threshold: 13}
"""
    made = boards(tmp_path, text)
    alerts = {key: titles_after(board, "What alerts") for key, board in made.items()}
    assert alerts == {
        "overview": ["Memory"],
        "model": ["InferenceLatency", "Throughput"],
        "precision": ["PrecisionDrift"] if "PrecisionDrift" in alerts["precision"] else ["Drift"],
        "gpu": ["GpuUtilization"],
    }
    slow, quiet = list(panels(made["model"]))[-2:]
    steps = slow["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["value"], step["color"]) for step in steps] == [(None, "green"), (0.2, "yellow"), (1.0, "red")]
    assert slow["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"] == {"mode": "dashed"}
    assert "WARNING where it is > 0.2; CRITICAL where it is > 1" in slow["description"]
    assert "docs/runbooks/InferenceLatency.md" in slow["description"]
    steps = quiet["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["value"], step["color"]) for step in steps] == [(None, "red"), (10.0, "green")], "it alerts below"


def titles_after(board: Board, row: str) -> list[str]:
    titles = [panel["title"] for panel in board["panels"]]
    return titles[titles.index(row) + 1 :]


def test_a_family_that_nobody_exports_is_said_and_every_family_is_known() -> None:
    expr = "sum(rate(tidegate_request_duration_seconds_count[1m])) / up + DCGM_FI_DEV_GPU_UTIL"
    assert set(families(expr)) == {"tidegate_request_duration_seconds", "up", "DCGM_FI_DEV_GPU_UTIL"}
    assert Panel("x", "What it tells.", [(expr, "")]).missing == []
    for board in BOARDS:
        for _, contents in board.rows:
            for each in contents:
                for expr, _ in each.asks:
                    assert families(expr) or "ALERTS" in expr, expr
                    unknown = set(re.findall(r"\b(?:tidegate|DCGM|process)_\w+", expr)) - set(families(expr))
                    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in unknown} <= set(EXPORTED), expr


def test_promtool_reads_every_query(made: Mapping[str, Board], tmp_path: Path) -> None:
    """As recording rules: promtool parses them."""
    queries = [filled(expr) for board in made.values() for expr in expressions(board)]
    recorded = [{"record": f"q:{number}", "expr": expr} for number, expr in enumerate(queries)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": recorded}]}))
    assert f"{len(queries)} rules found" in run("promtool", "check", "rules", "queries.yaml", cwd=tmp_path)


def test_equal_rules_give_equal_texts(tmp_path: Path) -> None:
    assert dashboards(rules(tmp_path, EXAMPLE)) == dashboards(rules(tmp_path, EXAMPLE))


# Enumerations as their values are written in JSON; and what Grafana's own types leave to the data source's plugin: Prometheus' part of an
# annotation.
TYPES = """\
import type { AnnotationQuery, Dashboard, DataQuery } from '@grafana/schema';
type Annotation = AnnotationQuery<DataQuery & { expr: string; interval?: string }> & { titleFormat?: string; textFormat?: string };
type Written<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Written<T[K]> } : T;
type Board = Written<Omit<Dashboard, 'annotations'> & { annotations?: { list?: Annotation[] } }>;
"""


def compiled(made: Mapping[str, Board], folder: Path) -> str:
    """What TypeScript says of dashboards held against Grafana's own types; nothing where they fit."""
    folder.mkdir()
    (folder / "node_modules").symlink_to(NODE_MODULES)
    text = "".join(f"export const {key}: Board = {json.dumps(board)};\n" for key, board in made.items())
    (folder / "boards.ts").write_text(TYPES + text)
    fetch()
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022", "boards.ts")
    command = ["node", str(NODE_MODULES / "typescript" / "bin" / "tsc"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100).stdout


def test_grafanas_types_take_them(made: Mapping[str, Board], tmp_path: Path) -> None:
    assert compiled(made, tmp_path / "good") == ""
    wrong = {key: {**board, "graphTooltip": "shared"} for key, board in made.items()}
    assert compiled(wrong, tmp_path / "bad").count("DashboardCursorSync") >= len(KEYS)
