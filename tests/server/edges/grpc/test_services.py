"""Health, reflection, the gate at every method, and the port's settings."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2

from server.app import App
from server.config import load_settings
from server.edges.grpc.servicer import INFERENCES, METHODS
from server.errors import ConfigError
from server.protocol.proto.messages import HEALTH, INFERENCE, message_class, methods_of
from tests.server.edges.grpc.wire import Client, connected, request
from tests.server.models import identity_model
from tests.server.running import in_thread

TOKEN = "a-token-that-is-known"
INFER = request("identity", {"x": np.ones((1, 16), np.float32)})
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
CHECK, WATCH = f"/{HEALTH}/Check", f"/{HEALTH}/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
Reflection: Any = message_class("grpc.reflection.v1.ServerReflectionRequest")
Reflected: Any = message_class("grpc.reflection.v1.ServerReflectionResponse")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("services")
    identity_model(root / "identity" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[App]:
    with in_thread(models, grpc_port=0) as app:
        yield app


@pytest.fixture(scope="module")
def client(served: App) -> Iterator[Client]:
    with connected(served.addresses.grpc) as one:
        yield one


def test_all_methods_of_the_protocol_are_there() -> None:
    assert METHODS.keys() | INFERENCES == methods_of(INFERENCE).keys()


# Health


@pytest.mark.parametrize("service", ["", HEALTH, INFERENCE])
def test_check(client: Client, service: str) -> None:
    body = b"\x0a" + bytes((len(service),)) + service.encode() if service else b""
    assert client.call(CHECK, body) == SERVING


def test_watch_an_unknown_service(client: Client) -> None:
    call = client.channel.unary_stream(WATCH)(b"\x0a\x04nope")
    assert next(call) == SERVICE_UNKNOWN
    call.cancel()


def test_health_says_at_once_that_the_server_goes_down(models: Path) -> None:
    """While it still accepts (drain_delay), Check and Watch say NOT_SERVING; then all calls end and the port is closed."""
    said: Queue[bytes | None] = Queue()
    with in_thread(models, grpc_port=0, drain_delay=2.0) as app, connected(app.addresses.grpc) as one:

        def watch() -> None:
            for status in one.channel.unary_stream(WATCH)(b""):
                said.put(status)
            said.put(None)

        watching = threading.Thread(target=watch)
        watching.start()
        assert said.get(timeout=10) == SERVING
        stopping = asyncio.run_coroutine_threadsafe(app.stop(), app.edge.loop)
        assert said.get(timeout=10) == NOT_SERVING
        assert one.call(CHECK) == NOT_SERVING
        assert one.call("ServerReady") == b""  # false
        assert len(one.call("ModelInfer", INFER)) > 64
        assert said.get(timeout=10) is None
        watching.join()
        stopping.result(20)
        assert one.refused("ServerLive", b"")[0] == "UNAVAILABLE"


# Reflection


def reflect(client: Client, *requests: Any) -> list[Any]:
    bodies = iter([one.SerializeToString() for one in requests])
    return [Reflected.FromString(answer) for answer in client.channel.stream_stream(REFLECT)(bodies, timeout=10)]


def test_a_client_without_proto_files_can_ask(client: Client) -> None:
    """As grpcurl does: list the services, get the files of one, make its messages from them."""
    (listed,) = reflect(client, Reflection(list_services="*"))
    names = [service.name for service in listed.list_services_response.service]
    assert names == [INFERENCE, HEALTH, "grpc.reflection.v1.ServerReflection"]
    answers = reflect(client, *(Reflection(file_containing_symbol=name) for name in names))
    pool = DescriptorPool()
    found = [FileDescriptorProto.FromString(raw) for answer in answers for raw in answer.file_descriptor_response.file_descriptor_proto]
    for file in sorted(found, key=lambda file: len(file.dependency)):
        pool.Add(file)
    method = pool.FindMethodByName(f"{INFERENCE}.ModelMetadata")
    body = GetMessageClass(method.input_type)(name="identity").SerializeToString()
    answer: Any = GetMessageClass(method.output_type).FromString(client.call("ModelMetadata", body))
    assert [(tensor.name, list(tensor.shape)) for tensor in answer.inputs] == [("x", [-1, 16])]


def test_what_reflection_cannot_tell(client: Client) -> None:
    answers = reflect(
        client,
        Reflection(file_by_filename="no.proto"),
        Reflection(file_containing_symbol="no.Symbol"),
        Reflection(file_by_filename="oip.proto"),
        Reflection(all_extension_numbers_of_type="inference.ModelInferRequest"),
        Reflection(),
    )
    assert [answer.WhichOneof("message_response") for answer in answers] == [
        "error_response",
        "error_response",
        "file_descriptor_response",
        "all_extension_numbers_response",
        "error_response",
    ]
    assert [answers[index].error_response.error_code for index in (0, 1, 4)] == [5, 5, 12]


# The gate


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(
        f"alice:{hashlib.sha256(TOKEN.encode()).hexdigest()}:infer,read,control,debug\nbob:{hashlib.sha256(b'bob').hexdigest()}:debug\n"
    )
    file.chmod(0o600)
    with in_thread(models, grpc_port=0, admin_token_file=file, allow=("shared-memory",)) as app, connected(app.addresses.grpc) as one:
        yield one


def ended(guarded: Client, method: str, token: str) -> str:
    """The code with which a call ends that shows a token."""
    path = method if method.startswith("/") else f"/{INFERENCE}/{method}"
    body = INFER if "Infer" in method else b""
    call = guarded.channel.stream_stream(path)(iter([body]), metadata=(("authorization", f"Bearer {token}"),), timeout=10)
    try:
        next(call, None)
        call.cancel()
    except grpc.RpcError:
        code: str = call.code().name
        return code
    return "OK"


@pytest.mark.parametrize("method", [*sorted(METHODS), *sorted(INFERENCES), CHECK, WATCH, REFLECT])
def test_every_method_asks_the_gate(guarded: Client, method: str) -> None:
    assert ended(guarded, method, "another") == "UNAUTHENTICATED"
    assert ended(guarded, method, "bob") == "PERMISSION_DENIED"
    assert ended(guarded, method, TOKEN) in ("OK", "NOT_FOUND", "UNIMPLEMENTED", "INVALID_ARGUMENT", "UNAVAILABLE")


def test_what_anonymous_calls_may_do_off_loopback(models: Path) -> None:
    with in_thread(models, grpc_port=0, host="0.0.0.0") as app, connected(f"127.0.0.1:{app.grpc.port}") as one:
        assert len(one.call("ModelInfer", INFER)) > 64
        assert one.refused("ModelInfer", explained())[0] == "PERMISSION_DENIED"
        code, said = one.refused("RepositoryModelLoad", b"")
        assert code == "PERMISSION_DENIED"
        assert "needs the class 'control'" in said


def explained() -> bytes:
    message = service_pb2.ModelInferRequest.FromString(INFER)
    message.parameters["explain"].bool_param = True
    written: bytes = message.SerializeToString()
    return written


def test_an_answer_is_explained_to_who_may_know(client: Client) -> None:
    parameters = client.infer(explained()).parameters
    assert parameters["batch_requests"].int64_param == 1
    assert parameters["precision"].string_param


# The port


def test_off(models: Path) -> None:
    with in_thread(models, grpc_port="off") as app:
        assert (app.addresses.grpc, app.grpc.port) == ("", 0)
        assert '"grpc"' not in app.ready_line()


@pytest.mark.parametrize("written", ["off", "none", "null"])
def test_off_in_the_file(tmp_path: Path, written: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"repository: models\ngrpc_port: {written}\n")
    assert load_settings(file, {}, {}).grpc_port is None


def test_a_port_that_is_taken(served: App, models: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"can't listen on 127\.0\.0\.1:\d+ for gRPC.*--grpc-port"),
        in_thread(models, grpc_port=served.grpc.port),
    ):
        pass


def test_a_key_with_a_password(models: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret"))
    (tmp_path / "key.pem").write_bytes(locked)
    tls = {"certfile": tmp_path / "cert.pem", "keyfile": tmp_path / "key.pem", "keyfile_password": "secret"}
    with in_thread(models, tls=tls):
        pass
    with (
        pytest.raises(ConfigError, match=r"tls\.keyfile_password: gRPC can't read an encrypted key"),
        in_thread(models, grpc_port=0, tls=tls),
    ):
        pass
