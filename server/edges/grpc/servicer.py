"""What the methods of GRPCInferenceService do, inference excepted: a message in, a message out. They decide nothing and know no transport.

METHODS is the whole list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, NamedTuple, TypeAlias

from server.config import VERSION
from server.control.dials import Dials
from server.controlplane import ControlPlane
from server.edges.extensions.shared_memory import NO_CUDA
from server.edges.grpc.call import Call, admitted
from server.errors import InvalidRequest, ModelUnavailable, NotFound, Unsupported
from server.gate import Gate, Operation
from server.protocol.proto.messages import INFERENCE, Message, methods_of, parse
from server.protocol.proto_codec import addressee
from server.regions import RegionRow, Regions
from server.router.router import Router
from server.statistics import Statistics
from server.tensors import TensorSpec
from server.triton import triton_config


@dataclass(frozen=True, slots=True)
class Servicer:
    """The parts that methods ask. `ready` says whether the server takes requests, `extensions` what its metadata lists."""

    name: str
    extensions: Sequence[str]
    gate: Gate
    router: Router
    control: ControlPlane
    ready: Callable[[], bool]
    statistics: Statistics
    dials: Dials
    regions: Regions

    async def call(self, method: str, body: bytes, call: Call) -> bytes:
        """Run a method by its name, from message bytes to message bytes. Raises TidegateError."""
        request, operation, run = METHODS[method]
        admitted(self.gate, call, operation)
        fields = run(self, parse(request, body))
        if isawaitable(fields):
            fields = await fields
        answer: bytes = _RESPONSES[method](**fields).SerializeToString()
        return answer


FILE = "file:"
Fields: TypeAlias = Mapping[str, Any]
Run: TypeAlias = Callable[[Servicer, Message], Fields | Awaitable[Fields]]
"""A method: the request's message → the fields of the answer's, at once or to be awaited."""


class Entry(NamedTuple):
    """One method: the class of its request, what the gate is asked, and what it does."""

    request: type[Any]
    operation: Operation
    run: Run


def _server_live(servicer: Servicer, request: Message) -> Fields:
    return {"live": True}


def _server_ready(servicer: Servicer, request: Message) -> Fields:
    return {"ready": servicer.ready()}


def _model_ready(servicer: Servicer, request: Message) -> Fields:
    """An unknown model isn't ready, as Triton has it: its clients take an error here for a broken server."""
    try:
        servicer.router.entry(*addressee(request.name, request.version, "name", "version"))
    except (NotFound, ModelUnavailable):
        return {"ready": False}
    return {"ready": True}


def _server_metadata(servicer: Servicer, request: Message) -> Fields:
    return {"name": servicer.name, "version": VERSION, "extensions": servicer.extensions}


def _model_metadata(servicer: Servicer, request: Message) -> Fields:
    entry = servicer.router.entry(*addressee(request.name, request.version, "name", "version"))
    assert entry.serving is not None
    return {
        "name": entry.model,
        "versions": servicer.router.ready_versions(entry.model),
        "platform": entry.platform,
        "inputs": [_tensor(spec) for spec in entry.serving.inputs],
        "outputs": [_tensor(spec) for spec in entry.serving.outputs],
    }


def _tensor(spec: TensorSpec) -> Fields:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _model_config(servicer: Servicer, request: Message) -> Fields:
    return {"config": triton_config(servicer.router.entry(*addressee(request.name, request.version, "name", "version")))}


def _model_statistics(servicer: Servicer, request: Message) -> Fields:
    if not request.name:
        return servicer.statistics("", "")
    return servicer.statistics(*addressee(request.name, request.version, "name", "version"))


async def _repository_index(servicer: Servicer, request: Message) -> Fields:
    _only_repository(request)
    await servicer.control.look()
    rows = servicer.control.index(request.ready)
    return {"models": [{"name": row.name, "version": row.version, "state": str(row.state), "reason": row.reason} for row in rows]}


def _regions_status(servicer: Servicer, request: Message) -> Fields:
    return {"regions": {row.name: row._asdict() for row in servicer.regions.status(request.name)}}


def _register_region(servicer: Servicer, request: Message) -> Fields:
    servicer.regions.register(RegionRow(request.name, request.key, request.offset, request.byte_size))
    return {}


def _unregister_region(servicer: Servicer, request: Message) -> Fields:
    servicer.regions.unregister(request.name)
    return {}


def _nothing(servicer: Servicer, request: Message) -> Fields:
    """CUDA's regions: there are none, and forgetting them succeeds."""
    return {}


def _refuse_cuda(servicer: Servicer, request: Message) -> Fields:
    raise Unsupported(NO_CUDA)


def _only_repository(request: Message) -> None:
    if request.repository_name:
        raise Unsupported("'repository_name' isn't supported: this server has one repository; leave it empty")


async def _load(servicer: Servicer, request: Message) -> Fields:
    _only_repository(request)
    await servicer.control.load(request.model_name, *_brought(request.parameters))
    return {}


def _brought(parameters: Mapping[str, Message]) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files of a load. Raises InvalidRequest."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == "config" and value.WhichOneof("parameter_choice") == "string_param":
            config = value.string_param
        elif name.startswith(FILE) and value.WhichOneof("parameter_choice") == "bytes_param":
            files[name.removeprefix(FILE)] = value.bytes_param
        else:
            raise InvalidRequest(f"parameters: expected config as string_param and {FILE}PATH as bytes_param, got {name[:80]!r}")
    return config, files


async def _unload(servicer: Servicer, request: Message) -> Fields:
    _only_repository(request)
    await servicer.control.unload(request.model_name, request.parameters["unload_dependents"].bool_param)
    return {}


def _trace_setting(servicer: Servicer, request: Message) -> Fields:
    wish = {name: list(setting.value) or None for name, setting in request.settings.items()}
    model = request.model_name
    found = servicer.dials.set_tracing(wish, model) if wish else servicer.dials.tracing(model)
    return {"settings": {name: {"value": value if isinstance(value, list) else [value]} for name, value in found.items()}}


def _log_settings(servicer: Servicer, request: Message) -> Fields:
    wish = {name: _chosen(setting) for name, setting in request.settings.items()}
    found = servicer.dials.set_logging(wish) if wish else servicer.dials.logging()
    return {"settings": {name: {_LOG_FIELDS[type(value)]: value} for name, value in found.items()}}


def _chosen(setting: Message) -> Any:
    """The value of a oneof, None where there's none."""
    kind = setting.WhichOneof("parameter_choice")
    return None if kind is None else getattr(setting, kind)


_LOG_FIELDS: Mapping[type, str] = {bool: "bool_param", int: "uint32_param", str: "string_param"}

_OPERATIONS: Mapping[str, tuple[Operation, Run]] = {
    "ServerLive": (Operation.HEALTH, _server_live),
    "ServerReady": (Operation.HEALTH, _server_ready),
    "ModelReady": (Operation.MODEL_READY, _model_ready),
    "ServerMetadata": (Operation.METADATA, _server_metadata),
    "ModelMetadata": (Operation.MODEL_METADATA, _model_metadata),
    "ModelConfig": (Operation.MODEL_CONFIG, _model_config),
    "ModelStatistics": (Operation.MODEL_STATISTICS, _model_statistics),
    "RepositoryIndex": (Operation.REPOSITORY_INDEX, _repository_index),
    "RepositoryModelLoad": (Operation.MODEL_LOAD, _load),
    "RepositoryModelUnload": (Operation.MODEL_UNLOAD, _unload),
    "SystemSharedMemoryStatus": (Operation.SHARED_MEMORY, _regions_status),
    "SystemSharedMemoryRegister": (Operation.SHARED_MEMORY, _register_region),
    "SystemSharedMemoryUnregister": (Operation.SHARED_MEMORY, _unregister_region),
    "CudaSharedMemoryStatus": (Operation.SHARED_MEMORY, _nothing),
    "CudaSharedMemoryRegister": (Operation.SHARED_MEMORY, _refuse_cuda),
    "CudaSharedMemoryUnregister": (Operation.SHARED_MEMORY, _nothing),
    "TraceSetting": (Operation.SETTINGS, _trace_setting),
    "LogSettings": (Operation.SETTINGS, _log_settings),
}
INFERENCES = frozenset(("ModelInfer", "ModelStreamInfer"))
"""The methods that aren't here, but in inference."""

_DESCRIBED = methods_of(INFERENCE)
_RESPONSES: Mapping[str, type[Any]] = {name: method.response for name, method in _DESCRIBED.items()}
METHODS: Mapping[str, Entry] = {name: Entry(_DESCRIBED[name].request, *rest) for name, rest in _OPERATIONS.items()}
