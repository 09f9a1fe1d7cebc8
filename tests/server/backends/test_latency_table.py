from pathlib import Path

import pytest

from server.backends.latency_table import BUILT_IN, LatencyTable, read_table, table_path
from server.errors import ConfigError, ModelDefect

TABLE = """device: {name: Pocket 9}
noise: {service_sigma: 0.1}
models:
  net:
    fp32: {latency_ms: {1: 2, 8: 9, 16: 25}}
    fp16: {latency_ms: {4: 8.0}}
    int8: {fit: {alpha: 1, beta: 0.5}, latency_ms: {1: 100}}
"""


def table(folder: Path, text: str = TABLE) -> LatencyTable:
    path = folder / "table.yaml"
    path.write_text(text)
    return read_table(path, ModelDefect)


def test_points_are_joined_and_a_fit_wins(tmp_path: Path) -> None:
    read = table(tmp_path)
    curve = read.curve("net", "fp32")
    milliseconds = {rows: curve.seconds(rows) * 1e3 for rows in (1, 2, 8, 12, 16, 32)}
    assert milliseconds == pytest.approx({1: 2, 2: 3, 8: 9, 12: 17, 16: 25, 32: 57})
    assert read.curve("net", "fp16").seconds(8) == pytest.approx(16e-3)
    assert read.curve("net", "int8").seconds(4) == pytest.approx(3e-3)
    assert (curve.device, curve.noise.service_sigma, curve.noise.spike_probability) == ("Pocket 9", 0.1, 0.0)


def test_the_packaged_table_is_whole() -> None:
    read = read_table(BUILT_IN["t4"])
    models = read.document.data["models"]
    for model, about in models.items():
        for precision in set(about) & {"fp32", "fp16", "int8"}:
            curve = read.curve(model, precision)
            assert 0 < curve.seconds(1) < curve.seconds(64), (model, precision)
            fit_error = [abs(curve.seconds(rows) / seconds - 1) for rows, seconds in curve.points if curve.fit]
            assert max(fit_error, default=0) < 0.12, (model, precision)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {}", "1: not a latency table: expected"),
        (TABLE.replace("alpha: 1", "alpa: 1"), "7: models.net.int8.fit.alpa: unknown key 'alpa'; did you mean 'alpha'?"),
        (TABLE.replace("beta: 0.5", "beta: -1"), "7: models.net.int8.fit.beta: "),
        (TABLE.replace("{alpha: 1, beta: 0.5}", "{alpha: 0, beta: 0}"), "7: models.net.int8.fit: alpha and beta are both 0"),
        (TABLE.replace("fit: {alpha: 1, beta: 0.5}, latency_ms: {1: 100}", "source: none"), "7: models.net.int8: expected fit"),
        (TABLE.replace("latency_ms: {1: 100}", "latency_ms: {0: 100}"), "7: models.net.int8: latency_ms: rows are"),
        (TABLE.replace("service_sigma: 0.1", "service_sigma: -1"), "2: noise.service_sigma: "),
        (TABLE.replace("{name: Pocket 9}", "Pocket 9"), "1: device: "),
        ("device: {name: x}\nmodels: {net: 3}", "2: models.net: expected names and their figures"),
        ("device: {name: x}\nmodels: {net: {int8: 3}}", "2: models.net.int8: expected keys and values, got '3'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelDefect) as caught:
        table(tmp_path, text).curve("net", "int8")
    assert f"{tmp_path / 'table.yaml'}:{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "precision", "message"),
    [
        ("nett", "fp32", "3: models: no model 'nett'; did you mean 'net'?"),
        ("net", "fp8", "4: models.net: no precision 'fp8'; expected one of fp32, fp16, int8"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(tmp_path: Path, model: str, precision: str, message: str) -> None:
    with pytest.raises(ModelDefect) as caught:
        table(tmp_path).curve(model, precision)
    assert str(caught.value) == f"{tmp_path / 'table.yaml'}:{message}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_table(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["../t.yaml", "t5", ".t.yaml", "a/b.yaml"])
def test_a_table_is_built_in_or_beside_model_yaml(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected t4 or the name of a"):
        table_path(name, tmp_path)
    assert table_path("t4", tmp_path) == BUILT_IN["t4"]
    assert table_path("mine.yaml", tmp_path) == tmp_path / "mine.yaml"
