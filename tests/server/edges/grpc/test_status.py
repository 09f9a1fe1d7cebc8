"""The table from errors to gRPC says the same as HTTP's."""

from __future__ import annotations

import grpc
import pytest

from server import errors
from server.edges.grpc.status import CODES, MAX_TEXT, code_of, text_of, trailers_of
from server.edges.http_errors import status_of
from server.errors import DeadlineExceeded, InvalidRequest, Overloaded, TidegateError

LIKE_HTTP = {
    400: {"INVALID_ARGUMENT", "CANCELLED"},
    401: {"UNAUTHENTICATED"},
    403: {"PERMISSION_DENIED"},
    404: {"NOT_FOUND"},
    408: {"INVALID_ARGUMENT"},
    409: {"ABORTED", "FAILED_PRECONDITION"},
    413: {"RESOURCE_EXHAUSTED"},
    500: {"INTERNAL"},
    501: {"UNIMPLEMENTED"},
    503: {"UNAVAILABLE"},
}
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TidegateError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_like_its_http_status(kind: type[TidegateError]) -> None:
    error = kind.__new__(kind)
    assert code_of(error) in LIKE_HTTP[status_of(error)]


def test_the_codes_are_grpc_s() -> None:
    assert set(CODES.values()) <= set(grpc.StatusCode.__members__)


@pytest.mark.parametrize("character", ["x", "ü", "€", "\U0001f600", "\ud800"])
def test_a_long_text_is_cut(character: str) -> None:
    text = text_of(InvalidRequest(character * 5000))
    assert MAX_TEXT - 8 < len(text.encode()) <= MAX_TEXT + 8
    assert text.endswith(" …")


def test_a_short_one_is_not() -> None:
    assert text_of(InvalidRequest("ü")) == "ü"


def test_when_to_come_back() -> None:
    assert trailers_of(Overloaded("full", "queue.max_rows", 0.25)) == (("grpc-retry-pushback-ms", "250"),)
    assert trailers_of(DeadlineExceeded("late", 0.0)) == (("grpc-retry-pushback-ms", "1"),)
    assert trailers_of(InvalidRequest("no")) == ()
