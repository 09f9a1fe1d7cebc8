"""The demo's questions: right answers are shown, wrong ones are found out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
import tritonclient.http as client
from rich.console import Console

from examples.models import digits
from examples.questions import SENTENCES, SHOWN_DIGITS, Asker, WrongAnswerError, ask_digits, ask_photos, ask_sentences
from server.app import App

Question = Callable[[Console, Asker], None]


def asked(app: App, question: Question, console: Console) -> None:
    with client.InferenceServerClient(app.addresses.http) as triton:
        question(console, Asker(triton))


def test_sentences(right: App, console: Console, said: io.StringIO) -> None:
    asked(right, ask_sentences, console)
    assert all(sentence in said.getvalue() for sentence in SENTENCES)
    rows = [[float(cell) for cell in re.findall(r"-?\d\.\d\d", line)] for line in said.getvalue().splitlines()]
    likeness = [row for row in rows if len(row) == len(SENTENCES)]
    assert [likeness[n][n] for n in range(len(SENTENCES))] == [1.0] * len(SENTENCES)


def test_photos(right: App, console: Console, said: io.StringIO) -> None:
    asked(right, ask_photos, console)
    assert re.search(r"cup of coffee\s+│ class 504 \d+%", said.getvalue())


def test_digits(right: App, said: io.StringIO) -> None:
    asked(right, ask_digits, Console(file=said, width=60, highlight=False))  # a narrow terminal
    written = " ".join(map(str, digits.data().test_labels[:SHOWN_DIGITS]))
    assert f"│ written │ {written} │" in said.getvalue()
    found = re.search(r"(\d+) of 540 digits that it never saw are read right \((9\d\.\d)%\)", said.getvalue())
    assert found is not None
    assert int(found[1]) > 0.95 * 540


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (ask_sentences, "should be most like 'Shares dropped in heavy trading.'"),
        (ask_photos, "mobilenet_v2: the photo of a rocket was taken for: class 658"),
        (ask_digits, "digits: accuracy 0."),
    ],
)
def test_wrong_answers_end_the_demo(wrong: App, console: Console, question: Question, words: str) -> None:
    with pytest.raises(WrongAnswerError) as caught:
        asked(wrong, question, console)
    assert words in str(caught.value)
