"""What a user's model prints becomes whole lines of the log."""

import json

import pytest

from server.backends.printed import MAX_LINE, Printed


def test_each_line_is_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    out = Printed("m", "1")
    print("one", file=out)
    out.write("two\nthr")
    out.write("ee\n\n")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["text"] for event in events] == ["one", "two", "three"]
    assert {(event["event"], event["level"], event["model"], event["version"]) for event in events} == {("model_printed", "info", "m", "1")}


def test_a_line_without_end_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    Printed("m", "1").write("x" * (3 * MAX_LINE + 1))
    assert [len(json.loads(line)["text"]) for line in capsys.readouterr().err.splitlines()] == [MAX_LINE] * 3


def test_a_line_cannot_forge_another(capsys: pytest.CaptureFixture[str]) -> None:
    Printed("m", "1").write('a\r{"event": "ready"}\x1b[2J\n')
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert "\x1b" not in line
    assert json.loads(line)["event"] == "model_printed"
