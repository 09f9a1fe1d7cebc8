from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from server.config import KEYS, Settings, load_settings, settings_schema, unread_variables
from server.errors import ConfigError

MODELS: Mapping[str, object] = {"repository": "models"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.yaml"


def refusal(file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, flags, environment or {})
    return str(caught.value)


def test_defaults() -> None:
    settings = load_settings(None, MODELS, {})
    assert (settings.host, settings.http_port, settings.metrics_port) == ("127.0.0.1", 8000, 8002)
    assert (settings.ready_when, settings.model_control, settings.server_name) == ("all", "none", "tidegate")
    assert (settings.drain_delay, settings.drain_timeout, settings.keep_alive) == (5.0, 30.0, 75.0)
    assert (settings.limits.max_body, settings.limits.inflight_bytes) == (64 << 20, 1 << 30)
    assert (settings.limits.max_json_body, settings.limits.json_offload) == (16 << 20, 256 << 10)


@pytest.mark.parametrize(
    ("in_file", "in_environment", "in_flags", "port"),
    [
        (None, None, None, 8000),
        (1, None, None, 1),
        (1, "2", None, 2),
        (1, "2", 3, 3),
        (1, None, 3, 3),
        (None, "2", None, 2),
        (None, "2", 3, 3),
        (1, "", None, 1),
        (1, "2", 0, 0),
    ],
)
def test_flag_wins_over_environment_over_file(
    file: Path, in_file: int | None, in_environment: str | None, in_flags: int | None, port: int
) -> None:
    file.write_text("repository: models\n" + (f"http_port: {in_file}\n" if in_file is not None else ""))
    environment = {} if in_environment is None else {"TIDEGATE_HTTP_PORT": in_environment}
    assert load_settings(file, {"http_port": in_flags}, environment).http_port == port


def test_sections_are_merged_setting_by_setting(file: Path) -> None:
    file.write_text("repository: models\nlog:\n  level: error\n  slow: 10s\n  access_sample: 1%\nlimits:\n")
    settings = load_settings(file, {"log_level": "debug"}, {"TIDEGATE_LOG_SLOW": "250ms", "TIDEGATE_LIMITS_MAX_BODY": "1MiB"})
    assert (settings.log.level, settings.log.slow, settings.log.access_sample) == ("debug", 0.25, 0.01)
    assert settings.limits.max_body == 1 << 20
    assert load_settings(file, {"log": {"level": "debug"}}, {}).log.level == "debug"


def test_every_setting_can_be_given_in_the_environment() -> None:
    values = {
        "repository": "r",
        "host": "::1",
        "lanes_device": "cuda:1",
        "lanes_threads": "auto",
        "ready_when": "a, b",
        "log_level": "error",
    }
    settings = load_settings(None, {}, {f"TIDEGATE_{name.upper()}": value for name, value in values.items()})
    assert settings.repository == Path("r")
    assert settings.ready_when == ("a", "b")
    assert (settings.lanes.device, settings.lanes.threads, settings.log.level) == ("cuda:1", 0, "error")
    assert len({*KEYS.values()}) == len(KEYS)


def test_a_service_named_like_a_setting_does_not_break_the_server() -> None:
    links = {
        "TIDEGATE_HTTP_PORT": "tcp://10.0.0.1:8000",
        "TIDEGATE_PORT": "tcp://10.0.0.1:8000",
        "TIDEGATE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "TIDEGATE_SERVICE_HOST": "10.0.0.1",
        "TIDEGATE_SERVICE_PORT_HTTP": "8000",
    }
    assert load_settings(None, MODELS, links).http_port == 8000
    assert list(unread_variables(links)) == []


def test_variables_that_nothing_reads_are_told() -> None:
    assert list(unread_variables({"TIDEGATE_HTP_PORT": "1", "TIDEGATE_LOG_LEVEL": "info", "PATH": "x"})) == [
        "environment variable TIDEGATE_HTP_PORT is no setting; did you mean 'TIDEGATE_HTTP_PORT'?"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http_prt: 1", "server.yaml:1: http_prt: unknown key 'http_prt'; did you mean 'http_port'?"),
        ("host: a\nlimits:\n  max_bdy: 1", "server.yaml:3: limits.max_bdy: unknown key 'max_bdy'; did you mean 'max_body'?"),
        ("limits: {max_body: 3 parsecs}", "server.yaml:1: limits.max_body: expected a size"),
        ("drain_delay: -1", "server.yaml:1: drain_delay: expected a duration"),
        ("keep_alive: 0", "server.yaml:1: keep_alive: input should be greater than 0"),
        ("http_port: 70000", "server.yaml:1: http_port: input should be less than or equal to 65535"),
        ("log: {level: verbose}", "server.yaml:1: log.level: got 'verbose'; expected one of debug, info, warning, error"),
        ("log: {access_sample: 2}", "server.yaml:1: log.access_sample: expected a share"),
        ("model_control: pol", "server.yaml:1: model_control: got 'pol'; did you mean 'poll'?"),
        ("load_model: [a]", "server.yaml:1: load_model needs model_control: explicit"),
        ("tls: {keyfile: /dev/null/none}", "server.yaml:1: tls.keyfile: path does not point to a file"),
        ("tls: {keyfile_password: x}", "server.yaml:1: tls: keyfile_password needs certfile"),
        ("limits:\n  inflight_bytes: 1KiB", "server.yaml:1: limits: inflight_bytes (1024) is less than max_body (67108864)"),
        ("lanes: {device: gpu}", "server.yaml:1: lanes.device: string should match"),
        ("ready_when: 5", "server.yaml:1: ready_when: got '5'; expected one of all, any"),
        ("log: 5", "server.yaml:1: log: input should be a valid dictionary"),
        ("host: ''", "server.yaml:1: host: string should have at least 1 character"),
    ],
)
def test_a_wrong_setting_names_file_line_and_what_is_right(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    assert f"{file.parent}/{expected}" in refusal(file, MODELS)


def test_a_wrong_setting_names_its_variable_or_flag(file: Path) -> None:
    file.write_text("log: 5\n")
    assert refusal(None, MODELS, {"TIDEGATE_LOG_LEVEL": "inof"}) == "TIDEGATE_LOG_LEVEL: got 'inof'; did you mean 'info'?"
    assert refusal(None, {**MODELS, "http_port": -1}).startswith("--http-port: input should be greater")
    assert refusal(None, {**MODELS, "log_levl": "x"}) == "flag 'log_levl' is no setting; did you mean 'log_level'?"
    assert "server.yaml:1: log: expected settings such as level, got '5'" in refusal(file, {**MODELS, "log_level": "info"})
    assert "must be given: --repository DIR" in refusal(None, {})


def test_settings_are_frozen_and_keep_secrets() -> None:
    settings = load_settings(None, {**MODELS, "tls": {"certfile": __file__, "keyfile_password": "hush"}}, {})
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.log.level = "debug"
    assert "hush" not in repr(settings)


def test_a_wrong_secret_is_not_told() -> None:
    assert "1234567" not in refusal(None, {**MODELS, "tls": {"keyfile_password": 1234567}})


def test_the_schema_takes_what_the_settings_take() -> None:
    schema = settings_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    good = """
repository: models
ready_when: [digits]
drain_delay: 5s
limits: {max_body: 64MiB, body_timeout: 30, max_json_body: 1048576}
log: {slow: 250ms, access_sample: 1%}
lanes: {threads: auto, count: 2}
"""
    jsonschema.validate(yaml.safe_load(good), schema)
    Settings.model_validate(yaml.safe_load(good))
    for wrong in ({"http_prt": 1}, {"limits": {"max_body": "64 parsecs"}}, {"log": {"level": "loud"}}, {"ready_when": 5}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
