"""The compiled descriptors are those of the .proto files, in a pool that leaves the default one to others."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import Default
from grpc_tools import protoc
from tritonclient.grpc import service_pb2

from server.protocol.proto import messages

FOLDER = Path(messages.__file__).parent


def test_the_descriptors_are_up_to_date(tmp_path: Path) -> None:
    written = tmp_path / "all.binpb"
    sources = [file.name for file in messages.FILES.file]
    assert set(sources) == {path.name for path in FOLDER.glob("*.proto")}
    wellknown = f"-I{files('grpc_tools') / '_proto'}"
    assert protoc.main(["protoc", f"-I{FOLDER}", wellknown, f"--descriptor_set_out={written}", *sources]) == 0
    assert FileDescriptorSet.FromString(written.read_bytes()) == messages.FILES, "write it anew: make protos"


def test_the_stock_client_keeps_the_default_pool() -> None:
    name = "inference.ModelInferRequest"
    assert Default().FindMessageTypeByName(name) is service_pb2.ModelInferRequest.DESCRIPTOR
    assert messages.POOL.FindMessageTypeByName(name) is messages.ModelInferRequest.DESCRIPTOR
    assert messages.ModelInferRequest is not service_pb2.ModelInferRequest
