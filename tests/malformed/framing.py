"""What is wrong below the inference document: compression, the HTTP message itself, paths, and the other routes' bodies."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from tests.malformed.documents import WHOLE, Case, Cases, Table, post
from tests.server.running import INFER, chunked, http

URL = INFER.format("m")
MEGABYTE = 1 << 20


def raw_deflate(body: bytes) -> bytes:
    """Deflate without zlib's wrapping, which HTTP's `deflate` isn't."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def flipped(body: bytes, at: int) -> bytes:
    """One byte turned."""
    turned = bytearray(body)
    turned[at] ^= 0xFF
    return bytes(turned)


PACKED = gzip.compress(WHOLE, mtime=0)
COMPRESSED: Mapping[str, tuple[str, bytes, tuple[int, ...]]] = {
    "noise as gzip": ("gzip", b"\x1f\x8bnonsense", (400,)),
    "plain as gzip": ("gzip", WHOLE, (400,)),
    "plain as deflate": ("deflate", WHOLE, (400,)),
    "nothing as gzip": ("gzip", b"", (400,)),
    "nothing as deflate": ("deflate", b"", (400,)),
    "gzip as deflate": ("deflate", PACKED, (400,)),
    "deflate as gzip": ("gzip", zlib.compress(WHOLE), (400,)),
    "raw deflate": ("deflate", raw_deflate(WHOLE), (400,)),
    "gzip twice": ("gzip", gzip.compress(PACKED), (400,)),
    "gzip without its end": ("gzip", PACKED[:-1], (400,)),
    "gzip without its length": ("gzip", PACKED[:-8], (400,)),
    "half of gzip": ("gzip", PACKED[: len(PACKED) // 2], (400,)),
    "a gzip header": ("gzip", PACKED[:10], (400,)),
    "gzip with a wrong sum": ("gzip", flipped(PACKED, -6), (400,)),
    "gzip with a wrong length": ("gzip", flipped(PACKED, -2), (400,)),
    "gzip and a rest": ("gzip", PACKED + b"rest", (400,)),
    "deflate with a wrong sum": ("deflate", flipped(zlib.compress(WHOLE), -1), (400,)),
    "half of deflate": ("deflate", zlib.compress(WHOLE)[:20], (400,)),
    "brotli": ("br", WHOLE, (501,)),
    "zstd": ("zstd", WHOLE, (501,)),
    "two encodings": ("gzip, gzip", gzip.compress(PACKED), (501,)),
    "an unknown one": ("x" * 1000, WHOLE, (501,)),
    "a bomb": ("gzip", gzip.compress(b" " * (64 * MEGABYTE), 9), (413,)),
    "a bomb in deflate": ("deflate", zlib.compress(b"[" * (64 * MEGABYTE), 9), (413,)),
    "just over the limit": ("gzip", gzip.compress(b" " * (MEGABYTE + 1)), (413,)),
}


def compression() -> Cases:
    for name, (encoding, body, statuses) in COMPRESSED.items():
        yield f"compression: {name}", Case(post(body, headers={"content-encoding": encoding}), statuses)
        pieces = chunked([body[at : at + 4096] for at in range(0, len(body), 4096)] or [])
        headers = {"content-encoding": encoding, "transfer-encoding": "chunked"}
        yield f"compression, in chunks: {name}", Case(post(pieces, headers=headers), statuses)


def sizes() -> Cases:
    yield "over max_body", Case(post(b" " * (MEGABYTE + 1)), (413,), "limits.max_body")
    yield "over max_body, said only", Case(http(URL, headers={"content-length": str(2**40)}), (413,), "limits.max_body", hangs=True)
    yield "over any integer, said only", Case(http(URL, headers={"content-length": "9" * 30}), (400, 413), hangs=True)
    yield (
        "over max_body, in chunks",
        Case(post(chunked([b" " * 65536] * 17), headers={"transfer-encoding": "chunked"}), (413,), "limits.max_body"),
    )
    yield "JSON over max_json_body", Case(post(b" " * (600 << 10)), (413,), "binary tensor extension")
    yield "bad JSON for the helper", Case(post(b"{" + b" " * (200 << 10)), text="JSON")
    yield "good JSON of a wrong kind for the helper", Case(post(b"[" + b" " * (200 << 10) + b"]"), text="JSON object")


def _infer(url: str) -> bytes:
    return http(url, WHOLE)


PATHS: Mapping[str, tuple[int, ...]] = {
    "/v2/models/../m/infer": (404,),
    "/v2/models/..%2fm/infer": (404,),
    "/v2/models/%2e%2e/infer": (404,),
    "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd/infer": (404,),
    "/v2/models/m%00/infer": (404,),
    "/v2/models/m%2f1/infer": (404,),
    "/v2/models/%ff%fe/infer": (404,),
    "/v2/models/%/infer": (404,),
    "/v2/models/%zz/infer": (404,),
    "/v2/models//infer": (404, 405),
    "/v2/models/M/infer": (404,),
    "/v2/models/m /infer": (400,),
    "/v2/models/" + "n" * 5000 + "/infer": (404,),
    "/v2/models/m/versions//infer": (404,),
    "/v2/models/m/versions/x/infer": (404,),
    "/v2/models/m/versions/-1/infer": (404,),
    "/v2/models/m/versions/0/infer": (404,),
    "/v2/models/m/versions/01/infer": (404,),
    "/v2/models/m/versions/1.0/infer": (404,),
    "/v2/models/m/versions/1/../1/infer": (404,),
    "/v2/models/m/versions/" + "9" * 200 + "/infer": (404,),
    "/v2/models/m/infer/infer": (404,),
    "/v2/models/m/INFER": (404,),
    "/v3/models/m/infer": (404,),
    "/v2//models/m/infer": (404,),
    "//v2/models/m/infer": (404,),
    "/": (404, 405),
}
FOLDERS = (
    "/v2/models/..%2f..%2fetc/manifest",
    "/v2/models/%2e%2e/manifest",
    "/v2/models/m/versions/..%2f1/manifest",
    "/v2/models/m%00/ready",
)


def paths() -> Cases:
    for path, statuses in PATHS.items():
        yield f"path: {path[:60]}", Case(_infer(path), statuses)
    for path in FOLDERS:
        yield f"GET {path}", Case(http(path, method="GET"), (404,))
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEADER", "PROPFIND"):
        yield f"{method} …/infer", Case(http(URL, method=method), (400, 405))
    for method in ("POST", "PUT", "DELETE"):
        yield f"{method} /v2", Case(http("/v2", b"{}", method), (405,), "Method Not Allowed")


BODIES: Mapping[str, bytes] = {
    "a list": b"[]",
    "text": b'"ready"',
    "no JSON": b"{",
    "a number": b'{"ready":5}',
    "null": b'{"ready":null}',
    "a string": b'{"ready":"true"}',
    "bad UTF-8": b'{"ready":"\xff"}',
    "deep": b"[" * 100_000,
}


def other_routes() -> Cases:
    for name, body in BODIES.items():
        yield f"index: {name}", Case(http("/v2/repository/index", body))
    for name, body in NO_LOADS.items():
        yield f"load: {name}", Case(http("/v2/repository/models/m/load", body))
    for name, body in NO_UNLOADS.items():
        yield f"unload: {name}", Case(http("/v2/repository/models/nobody/unload", body), (400, 404))
    for file in FILES:
        uploaded = {"parameters": {"config": "{}", f"file:{file}": "AAAA"}}
        yield f"upload: {file[:40]}", Case(http("/v2/repository/models/uploaded/load", json.dumps(uploaded).encode()))
    for model in MODELS:
        for act in ("load", "unload"):
            yield f"{act} {model[:40]}", Case(http(f"/v2/repository/models/{model}/{act}", b"{}"), (400, 404))


NO_LOADS: Mapping[str, bytes] = {
    "a list": b"[]",
    "no JSON": b"{",
    "bad UTF-8": b'{"parameters":{"config":"\xff"}}',
    "parameters of a wrong type": b'{"parameters":[]}',
    "a config that is no text": b'{"parameters":{"config":{}}}',
    "a config that is no JSON": b'{"parameters":{"config":"{"}}',
    "a config that is a list": b'{"parameters":{"config":"[]"}}',
    "a config with an unknown member": b'{"parameters":{"config":"{\\"max_batch\\":1}"}}',
    "a config with a wrong value": b'{"parameters":{"config":"{\\"max_batch_size\\":\\"many\\"}"}}',
    "a file without a config": b'{"parameters":{"file:1/model.onnx":"AAAA"}}',
    "a file that is no base64": b'{"parameters":{"config":"{}","file:1/model.onnx":"*"}}',
    "a file that is no text": b'{"parameters":{"config":"{}","file:1/model.onnx":5}}',
    "a file that is no model": b'{"parameters":{"config":"{}","file:1/model.onnx":"AAAA"}}',
}
NO_UNLOADS: Mapping[str, bytes] = {
    "a list": b"[]",
    "no JSON": b"{",
    "parameters of a wrong type": b'{"parameters":5}',
    "dependents of a wrong type": b'{"parameters":{"unload_dependents":"yes"}}',
}
FILES = (
    *("", "/", "..", "../m/1/model.onnx", "1/../../m/1/model.onnx", "/etc/passwd", "1/../../../x", "1//model.onnx", "./1/model.onnx"),
    *(
        "1/model.onnx/..",
        "1/mo\0del.onnx",
        "1\\..\\model.onnx",
        "C:/model.onnx",
        "~/model.onnx",
        "1/" + "n" * 300,
        "a/" * 200 + "model.onnx",
    ),
)
MODELS = ("nobody", "..", "%2e%2e", "..%2fm", "%2fetc", "m%00", ".", "n" * 300, "%ff", "m%2f1")


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes that are no HTTP message. The connection is answered with one of the statuses (0: not at all) and ended."""

    sent: bytes
    statuses: tuple[int, ...] = (400,)


def _head(*lines: str) -> bytes:
    return "\r\n".join((f"POST {URL} HTTP/1.1", "host: t", *lines)).encode("latin-1") + b"\r\n\r\n"


BROKEN: Mapping[str, Broken] = {
    "TLS": Broken(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "HTTP/2": Broken(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 505)),
    "noise": Broken(bytes(range(1, 256)) * 4),
    "HTTP/9.9": Broken(b"GET /v2 HTTP/9.9\r\nhost: t\r\n\r\n"),
    "small letters": Broken(b"get /v2 HTTP/1.1\r\nhost: t\r\n\r\n"),
    "a negative length": Broken(_head("content-length: -5")),
    "a length in hex": Broken(_head("content-length: 0x5")),
    "a length with an exponent": Broken(_head("content-length: 1e3")),
    "two lengths": Broken(_head("content-length: 5", "content-length: 6")),
    "two lengths in one": Broken(_head("content-length: 5, 6")),
    "a length beyond 64 bits": Broken(_head("content-length: " + "9" * 40), (400, 413)),
    "length and chunks": Broken(_head("content-length: 5", "transfer-encoding: chunked")),
    "a chunk's size that is none": Broken(_head("transfer-encoding: chunked") + b"zz\r\n"),
    "a negative chunk": Broken(_head("transfer-encoding: chunked") + b"-1\r\n"),
    "an endless chunk's size": Broken(_head("transfer-encoding: chunked") + b"f" * 40 + b"\r\n"),
    "a chunk without an end": Broken(_head("transfer-encoding: chunked") + b"2\r\nabcdef\r\n"),
    "a header without a colon": Broken(_head("nonsense")),
    "a space in a header's name": Broken(_head("content length: 5")),
    "a NUL in a header": Broken(_head("x: a\0b")),
    "a NUL in a header's name": Broken(_head("x\0: a")),
    "long headers": Broken(_head("x: " + "h" * 600_000), (431,)),
    "many headers": Broken(_head(*(f"x{number}: {'h' * 100}" for number in range(6000))), (431,)),
}


def all_framing() -> dict[str, Case]:
    """Every case of this module that a connection survives or is told about, but for BROKEN."""
    table = Table()
    for cases in (compression(), sizes(), paths(), other_routes()):
        table.add(cases)
    return table.cases
