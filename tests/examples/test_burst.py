"""The burst: every answer is its own row's, and the batches that are shown are the server's."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from examples.burst import DIGITS, PHOTOS, burst
from examples.metrics import read_batches
from server.app import App


def test_batches_are_counted_and_answers_compared(right: App, console: Console, said: io.StringIO) -> None:
    before = read_batches(right.addresses.metrics)
    burst(console, right.addresses.http, right.addresses.metrics)
    after = read_batches(right.addresses.metrics)
    shown = re.findall(r"(\d+) requests to (\w+) at once: [\d.]+ s, (\d+) batches: (.*)", said.getvalue())
    assert [(int(count), model) for count, model, _, _ in shown] == [(DIGITS, "digits"), (PHOTOS, "mobilenet_v2")]
    for count, model, runs, sizes in shown:
        burst_rows = after[model].rows - before[model].rows
        assert burst_rows >= int(count)
        assert sum(int(found) for found in re.findall(r"(\d+) of ", sizes)) == int(runs) <= int(count)
    assert said.getvalue().count("answers differ from those asked alone by at most") == 2


def test_a_server_that_is_not_there(console: Console) -> None:
    with pytest.raises(OSError, match="refused"):
        burst(console, "127.0.0.1:9", "127.0.0.1:9")
