"""The stock client, in a process of its own, against a real server: what it does is in `cases`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from server.app import App
from server.tensors import DTYPES
from tests.server.edges.grpc.conftest import Stock
from tests.server.models import identity_model, linear_model, slow_model, two_inputs_model
from tests.server.running import in_thread

CASES = (
    *("metadata", "raw", "typed", "outputs_and_versions", "errors", "compression", "concurrently", "aio", "stream"),
    *("cancelled_stream", "cancelled", "deadline", "pings", "health_and_reflection", "threads"),
)
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """echo_DATATYPE [N,W] for every datatype, pair, linear, a slow one, and one that can't be served."""
    root = tmp_path_factory.mktemp("stock-grpc")
    for datatype in DTYPES:
        identity_model(root / f"echo_{datatype}" / "1" / "model.onnx", datatype, "W")
    two_inputs_model(root / "pair" / "1" / "model.onnx")
    slow_model(root / "slow" / "1" / "model.onnx")
    for version in ("1", "3"):
        linear_model(root / "linear" / version / "model.onnx", seed=int(version))
    (root / "linear" / "model.yaml").write_text("versions: {policy: all}\nbatching: {max_rows: 8}\n")
    (root / "slow" / "model.yaml").write_text("batching: {max_rows: 64}\nqueue: {max_rows: 8192}\nlanes: {kind: thread, count: 1}\n")
    (root / "corrupt" / "1").mkdir(parents=True)
    (root / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    with in_thread(root, grpc_port=0, grpc={"compression": "gzip", "max_message": LIMIT, "min_ping_interval": "50ms"}) as app:
        yield app


@pytest.mark.parametrize("case", CASES)
def test_case(served: App, stock: Stock, case: str) -> None:
    stock(case, address=served.addresses.grpc)
    assert served.edge.inflight.used == 0


def test_a_message_over_the_limit(served: App, stock: Stock) -> None:
    stock("too_large", address=served.addresses.grpc, limit=LIMIT)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tls-models")
    two_inputs_model(root / "pair" / "1" / "model.onnx")
    return root


def files(authority: trustme.CA, folder: Path) -> dict[str, str]:
    """Certificates on disk: the authority's, the server's (key and chain in one file), a client's."""
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    client = authority.issue_cert("alice@example.org", common_name="alice")
    client.private_key_pem.write_to_path(folder / "client.key")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    return {path.name: str(path) for path in folder.iterdir()}


def test_tls(pair: Path, stock: Stock, authority: trustme.CA, tmp_path: Path) -> None:
    paths = files(authority, tmp_path)
    with in_thread(pair, grpc_port=0, tls={"certfile": paths["server.pem"]}) as app:
        address = f"localhost:{app.grpc.port}"
        stock("tls", address=address, ca=paths["ca.pem"])


def test_mutual_tls(pair: Path, stock: Stock, authority: trustme.CA, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = files(authority, tmp_path)
    tls = {"certfile": paths["server.pem"], "ca_certs": paths["ca.pem"]}
    with in_thread(pair, grpc_port=0, tls=tls, log={"format": "json", "access_sample": 1}) as app:
        address = f"localhost:{app.grpc.port}"
        stock("no_tls", address=address, ca=paths["ca.pem"])
        stock("tls", address=address, ca=paths["ca.pem"], certificate=paths["client.pem"], key=paths["client.key"])
    assert '"principal":"alice"' in capfd.readouterr().err
