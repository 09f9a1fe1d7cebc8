"""Compressed bodies: any cut gives the same bytes, bombs stop at the limit, and what isn't compressed data is refused."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BodyTooLarge, InvalidRequest, Unsupported
from server.protocol.inflate import MAX_MEMBERS, STEP, Inflater, accepted, deflate

TEXT = b"tensor " * 1000 + bytes(range(256))


def inflated(encoding: str, chunks: list[bytes], limit: int = 1 << 26) -> bytes:
    inflater = Inflater(encoding, limit)
    out = b"".join([inflater.feed(chunk) for chunk in chunks])
    inflater.finish()
    return out


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=6))
def test_any_cut_gives_the_same_bytes(encoding: str, text: bytes, cuts: list[int]) -> None:
    packed = deflate(encoding, [text[:7], memoryview(text[7:])])
    places = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    assert inflated(encoding, [packed[a:b] for a, b in itertools.pairwise(places)]) == text


def test_the_standard_library_agrees() -> None:
    assert inflated("gzip", [gzip.compress(TEXT)]) == TEXT
    assert inflated(" GZip ", [gzip.compress(TEXT)]) == TEXT
    assert inflated("deflate", [zlib.compress(TEXT)]) == TEXT
    assert gzip.decompress(deflate("gzip", [TEXT])) == TEXT
    assert zlib.decompress(deflate("deflate", [TEXT])) == TEXT


def test_noise_of_several_steps() -> None:
    noise = random.Random(0).randbytes(3 * STEP + 17)
    assert inflated("gzip", [gzip.compress(noise + bytes(5 * STEP))]) == noise + bytes(5 * STEP)


def test_members_in_a_row_are_one_body() -> None:
    assert inflated("gzip", [gzip.compress(b"a") + gzip.compress(b"") + gzip.compress(b"b")]) == b"ab"
    with pytest.raises(InvalidRequest, match="follow the end of the gzip body"):
        inflated("gzip", [gzip.compress(b"") * (MAX_MEMBERS + 1)])


def test_a_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    limit = 4 << 20
    tracemalloc.start()
    inflater = Inflater("gzip", limit)
    sizes: list[int] = []
    with pytest.raises(BodyTooLarge, match="inflates to more than 4194304 bytes"):
        sizes.extend(len(out) for out in inflater.steps(bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(sizes) <= STEP
    assert sum(sizes) <= limit
    assert peak < 4 * STEP + len(bomb)


def test_the_limit_itself_is_allowed() -> None:
    packed = gzip.compress(bytes(1000))
    assert inflated("gzip", [packed], 1000) == bytes(1000)
    with pytest.raises(BodyTooLarge):
        inflated("gzip", [packed], 999)


@pytest.mark.parametrize(
    ("encoding", "data", "text"),
    [
        ("gzip", b"", "cut short"),
        ("gzip", gzip.compress(TEXT)[:-1], "cut short"),
        ("deflate", zlib.compress(TEXT)[:-1], "cut short"),
        ("gzip", TEXT, "the gzip body is corrupt"),
        ("deflate", TEXT, "the deflate body is corrupt"),
        ("deflate", zlib.compress(TEXT)[2:-4], "the deflate body is corrupt"),
        ("gzip", zlib.compress(TEXT), "the gzip body is corrupt"),
        ("gzip", gzip.compress(TEXT)[:-8] + bytes(8), "the gzip body is corrupt"),
        ("gzip", gzip.compress(TEXT) + b"trailing", "the gzip body is corrupt"),
        ("deflate", zlib.compress(TEXT) + b"x", "1 or more bytes follow the end of the deflate body"),
    ],
)
def test_what_is_wrong(encoding: str, data: bytes, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        inflated(encoding, [data[:5], data[5:]])


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=100))
def test_noise_raises_nothing_but_our_errors(encoding: str, noise: bytes) -> None:
    for data in (noise, deflate(encoding, [b"x"])[:4] + noise):
        with contextlib.suppress(InvalidRequest):
            inflated(encoding, [data], 1000)


@pytest.mark.parametrize("encoding", ["br", "identity", "gzip, deflate", "", "x" * 1000])
def test_other_encodings(encoding: str) -> None:
    with pytest.raises(Unsupported, match="expected gzip or deflate") as caught:
        Inflater(encoding, 10)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.6", "deflate"),
        ("GZIP ; Q=0.5 , identity;q=0.4", "gzip"),
        ("identity, gzip;q=0.9", "identity"),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0, deflate;q=0.001", "deflate"),
        ("br, zstd", "identity"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip"),
        ("*", "identity"),
        ("gzip;q=x", "identity"),
        ("gzip;q=nan", "identity"),
        ("gzip;q=7", "identity"),
        (",,;;q=1,gzip;level=1", "gzip"),
    ],
)
def test_accepted(header: str, expected: str) -> None:
    assert accepted(header) == expected


@given(st.text(max_size=40))
def test_any_header_is_answered(header: str) -> None:
    assert accepted(header) in ("gzip", "deflate", "identity")
