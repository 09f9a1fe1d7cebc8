"""Trace and log settings, changed while the server runs: over both edges, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http

from server.app import App
from tests.server.models import identity_model
from tests.server.running import in_thread

TRACES = {"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_file": ""}
LOGS = {
    **{"log_file": "", "log_info": True, "log_warning": True, "log_error": True},
    **{"log_verbose_level": 0, "log_format": "ISO8601"},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("echo", "other"):
        identity_model(tmp_path / "models" / name / "1" / "model.onnx")
    return tmp_path / "models"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    return folder


@pytest.fixture
def served(repository: Path, files: Path) -> Iterator[App]:
    with in_thread(repository, grpc_port=0, allow="files", files_dir=files) as app:
        yield app


def call(app: App, path: str, wish: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    url = f"http://{app.addresses.http}/v2/{path}"
    return httpx.get(url, headers=headers) if wish is None else httpx.post(url, json=wish, headers=headers)


def infer(app: App, model: str = "echo", width: int = 16) -> int:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, width], "data": [0.5] * width}]}
    return call(app, f"models/{model}/infer", body).status_code


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The lines of a file, once there are so many."""
    end = monotonic() + 20
    while True:
        found = path.read_text().splitlines() if path.exists() else []
        if len(found) >= count:
            return [json.loads(line) for line in found]
        assert monotonic() < end, found
        sleep(0.02)


def test_the_stock_http_client_reads_changes_and_clears(served: App) -> None:
    with stock_http.InferenceServerClient(served.addresses.http) as client:
        assert client.get_trace_settings() == TRACES
        assert client.get_log_settings() == LOGS
        changed = client.update_trace_settings("echo", {"trace_rate": "5", "trace_level": ["TIMESTAMPS"], "unknown": "x"})
        assert changed == {**TRACES, "trace_rate": "5", "trace_level": ["TIMESTAMPS"]} == client.get_trace_settings("echo")
        assert client.get_trace_settings("other") == client.get_trace_settings() == TRACES
        assert client.update_trace_settings("echo", {"trace_rate": None})["trace_rate"] == "1000"
        assert client.update_log_settings({"log_info": False, "log_verbose_level": 1}) == {
            **LOGS,
            "log_info": False,
            "log_verbose_level": 1,
        }
        assert client.update_log_settings({"log_info": None, "log_verbose_level": None}) == LOGS


def test_the_stock_grpc_client_does_the_same(served: App) -> None:
    with stock_grpc.InferenceServerClient(served.addresses.grpc) as client:

        def traces(answer: Any) -> dict[str, list[str]]:
            return {name: list(setting.value) for name, setting in answer.settings.items()}

        expected = {name: value if isinstance(value, list) else [value] for name, value in TRACES.items()}
        assert traces(client.get_trace_settings()) == expected
        changed = client.update_trace_settings("echo", {"trace_rate": "5", "trace_level": ["TIMESTAMPS"]})
        assert traces(changed) == {**expected, "trace_rate": ["5"], "trace_level": ["TIMESTAMPS"]}
        assert traces(client.get_trace_settings("echo"))["trace_rate"] == ["5"]
        assert traces(client.update_trace_settings("echo", {"trace_rate": None, "trace_level": None})) == expected
        logs = client.update_log_settings({"log_warning": False, "log_verbose_level": 2, "log_format": "default"}).settings
        assert (logs["log_warning"].bool_param, logs["log_verbose_level"].uint32_param, logs["log_file"].string_param) == (False, 2, "")
        assert call(served, "logging").json() == {**LOGS, "log_warning": False, "log_verbose_level": 2}


def test_traces_go_to_a_file_as_long_and_as_often_as_asked(served: App, files: Path) -> None:
    assert infer(served) == 200
    wish = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "2", "trace_file": "sub/t.jsonl"}
    assert call(served, "models/echo/trace/setting", wish).status_code == 200
    assert [infer(served) for _ in range(3)] == [200] * 3
    assert infer(served, "other") == 200
    found = lines(files / "sub" / "t.jsonl", 2)
    assert [line["model"] for line in found] == ["echo", "echo"]
    assert list(found[0]["phases"]) == ["decode", "queue", "gather", "compute", "scatter", "encode"]
    assert found[0]["begin_ns"] <= found[0]["phases"]["compute"][0] <= found[0]["end_ns"]
    assert call(served, "models/echo/trace/setting", {"trace_level": ["OFF"]}).status_code == 200
    assert infer(served) == 200
    assert call(served, "models/echo/trace/setting", {"trace_level": ["TIMESTAMPS"], "trace_count": "1"}).status_code == 200
    assert infer(served, width=3) == 400
    assert lines(files / "sub" / "t.jsonl", 3)[2]["reason"] == "invalid"


def test_lines_of_the_log_go_where_and_are_what_was_asked(served: App, files: Path) -> None:
    def events() -> list[str]:
        return [line["event"] for line in lines(files / "server.log", 0)]

    assert call(served, "logging", {"log_file": "server.log", "log_verbose_level": 2}).status_code == 200
    assert infer(served) == 200
    end = monotonic() + 20
    while "access" not in events():
        assert monotonic() < end
        sleep(0.02)
    assert call(served, "logging", {"log_info": False, "log_verbose_level": 0}).status_code == 200
    assert infer(served, width=3) == 400  # told as info
    assert call(served, "logging", {"log_info": True}).status_code == 200
    assert infer(served, width=4) == 400
    end = monotonic() + 20
    while events().count("request_failed") < 1:
        assert monotonic() < end
        sleep(0.02)
    failed = [line for line in lines(files / "server.log", 1) if line["event"] == "request_failed"]
    assert ["got [1,4]" in line["error"] for line in failed] == [True]
    assert call(served, "logging", {"log_file": None}).json() == LOGS
    assert (files / "server.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("path", "wish", "status", "text"),
    [
        ("trace/setting", {"trace_rate": "0"}, 400, "trace_rate: expected a number from 1"),
        ("trace/setting", {"trace_level": ["TENSORS"]}, 501, "recording.tensors"),
        ("models/nobody/trace/setting", {"trace_rate": "1"}, 404, "'nobody' is not found"),
        *(
            (route, {name: given}, 400, text)
            for route, name in (("trace/setting", "trace_file"), ("logging", "log_file"))
            for given, text in (
                ("../x", "expected a relative path"),
                ("/etc/x", "expected a relative path"),
                (".hidden", "expected a relative path"),
                ("a\nb", "expected a relative path"),
                ("nowhere/x", "its folder isn't there"),
                ("out/x", "no file below files_dir"),
                ("out", "no file below files_dir"),
                ("sub", "no file below files_dir"),
            )
        ),
        ("logging", {"log_info": "perhaps"}, 400, "log_info: expected true or false, got 'perhaps'"),
        ("logging", {"log_verbose_level": -1}, 400, "log_verbose_level: expected a number from 0"),
        ("logging", {"log_verbose_level": True}, 400, "log_verbose_level: expected a number"),
        ("logging", {"log_format": "xml"}, 400, "log_format: expected default or ISO8601"),
        ("logging", {"log_file": 7}, 400, "log_file: expected text"),
    ],
)
def test_what_cannot_be_set_changes_nothing(served: App, path: str, wish: dict[str, Any], status: int, text: str) -> None:
    answer = call(served, path, {"trace_count": "7", "log_error": False, **wish})
    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
    assert (call(served, "trace/setting").json(), call(served, "logging").json()) == (TRACES, LOGS)


def test_without_leave_no_file_is_named_and_nothing_traced_into_the_void(repository: Path, files: Path) -> None:
    with in_thread(repository, files_dir=files) as app:
        for path, name in (("trace/setting", "trace_file"), ("logging", "log_file")):
            answer = call(app, path, {name: "x"})
            assert (answer.status_code, "--allow files" in answer.json()["error"]) == (403, True)
        answer = call(app, "trace/setting", {"trace_level": ["TIMESTAMPS"]})
        assert (answer.status_code, "tracing.endpoint" in answer.json()["error"]) == (400, True)
        assert call(app, "trace/setting", {"trace_level": ["OFF"]}).status_code == 200
        assert app.dataplane is not None
        assert app.dials.tracer is None
    assert sorted(path.name for path in files.iterdir()) == ["out", "sub"]


def test_only_control_may(repository: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(
        "".join(
            f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{grants}\n" for name, grants in (("ops", "read,control"), ("ml", "read"))
        )
    )
    tokens.chmod(0o600)
    with in_thread(repository, admin={"token_file": tokens}, grpc_port=0) as app:
        for path in ("trace/setting", "models/echo/trace/setting", "logging"):
            for wish in (None, {"trace_rate": "5", "log_info": False}):
                assert call(app, path, wish, authorization="Bearer ml").status_code == 403
                assert call(app, path, wish, authorization="Bearer ops").status_code == 200
        with stock_grpc.InferenceServerClient(app.addresses.grpc) as client:
            for method in (client.get_trace_settings, client.get_log_settings):
                with pytest.raises(Exception, match="PERMISSION_DENIED"):
                    method(headers={"authorization": "Bearer ml"})
