"""How the demo talks: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from examples.console import PLAIN_WIDTH, make_console, say, step
from examples.demo import main


def test_plain_lines(console: Console, said: io.StringIO) -> None:
    with step(console, "think"):
        console.print("a thought")
    assert re.fullmatch(r"- think …\na thought\n- think: done in \d\.\d s\n", said.getvalue())


def test_on_a_terminal_the_spinner_goes_away() -> None:
    out = io.StringIO()
    with step(Console(file=out, force_terminal=True, width=60, highlight=False), "think"):
        pass
    assert re.search(r"- think: .*done.* in \d\.\d s\n$", out.getvalue())
    assert "\x1b[?25h" in out.getvalue()  # the cursor is shown again


@pytest.mark.parametrize(("terminal", "lines"), [(True, ["words kept", "whole"]), (False, ["words kept whole"])])
def test_prose_is_broken_between_words_and_only_for_people(terminal: bool, lines: list[str]) -> None:
    out = io.StringIO()
    say(Console(file=out, force_terminal=terminal, width=11), "words kept whole")
    assert [line.rstrip() for line in out.getvalue().splitlines()] == lines


def test_a_step_that_fails_is_not_done(console: Console, said: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), step(console, "divide"):
        raise ZeroDivisionError
    assert "done" not in said.getvalue()


def test_tables_have_room_where_there_is_no_terminal() -> None:
    assert make_console().width == PLAIN_WIDTH


def test_a_flag_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quiet"]) == 2
    assert capsys.readouterr().err == "error: --quiet: the only flag is --no-questions\n"
