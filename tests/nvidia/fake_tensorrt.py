"""TensorRT in onnxruntime's clothes: the part of its API that tidegate uses, for tests of what surrounds it.

An "engine" is the ONNX file with its profiles and a version. test_names.py holds each name here to the real bindings', so that a test
can't pass by a method that TensorRT doesn't have. What a real engine computes, and how fast, no fake can say.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.nvidia.fake_gpu import FakeGpu

VERSION = "10.16.1.11"


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    INTERNAL_ERROR, ERROR, WARNING = Severity

    def __init__(self) -> None: ...

    def log(self, severity: ILogger.Severity, msg: str) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class DataType(Enum):
    FLOAT, HALF, INT32, INT64, INT8, BOOL, UINT8, BF16, FP8 = range(9)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class MemoryPoolType(Enum):
    WORKSPACE = 0


class BuilderFlag(Enum):
    TF32, VERSION_COMPATIBLE = range(2)


class HardwareCompatibilityLevel(Enum):
    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = range(3)


class NetworkDefinitionCreationFlag(Enum):
    STRONGLY_TYPED = 1


class Dims:
    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, arg0: int) -> int:
        return self._shape[arg0]


class IHostMemory:
    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def nbytes(self) -> int:
        return len(self._content)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"timed;"


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
        self._shapes[input] = [[dims[axis] for axis in range(len(dims))] for dims in (min, opt, max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None
        self._flags = {BuilderFlag.TF32}
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache = ITimingCache(b"")

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content.startswith(b"another"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED.value
        self._onnx = b""


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node_7"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self.num_errors = 0

    def parse_from_file(self, model: str) -> bool:
        content = Path(model).read_bytes()
        if any(node.op_type == "NonZero" for node in onnx.load_from_string(content).graph.node):
            self.num_errors = 1
            return False
        self._network._onnx = content
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError("unsupported operator NonZero")


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            steps = [monitor.step_complete("Building Engine", step) for step in range(2)]
            monitor.phase_finish("Building Engine")
            if not all(steps):
                return None
        if config._pools.get(MemoryPoolType.WORKSPACE, 1 << 30) < 1 << 20:
            self._logger.log(ILogger.ERROR, "no tactic fits the workspace")
            return None
        profiles = [profile._shapes for profile in config._profiles]
        plan = {"version": VERSION, "profiles": profiles, "onnx": network._onnx.hex(), "level": config.builder_optimization_level}
        flags = sorted(flag.name for flag in config._flags)
        return json.dumps(plan | {"flags": flags, "compatibility": config.hardware_compatibility_level.name}).encode()


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            self._logger.log(ILogger.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        if plan["version"] != VERSION and not self.engine_host_code_allowed:
            self._logger.log(ILogger.ERROR, f"The engine plan file is of version {plan['version']}")
            return None
        return ICudaEngine(plan)


class ICudaEngine:
    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._profiles = plan["profiles"]
        self._session = ort.InferenceSession(bytes.fromhex(plan["onnx"]), providers=["CPUExecutionProvider"])
        self._inputs = {str(node.name): node for node in self._session.get_inputs()}
        self._nodes: dict[str, Any] = self._inputs | {node.name: node for node in self._session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self._nodes)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._nodes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_dtype(self, name: str) -> DataType:
        kinds = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}
        return kinds.get(self._nodes[name].type, DataType.FP8)

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims([axis if isinstance(axis, int) else -1 for axis in self._nodes[name].shape])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims(shape) for shape in self._profiles[profile_index][name]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    gpu: FakeGpu

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._outputs: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile, self._shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine._profiles[self._profile][name]
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def get_max_output_size(self, name: str) -> int:
        feed = {key: np.zeros(shape, self._numpy(key)) for key, shape in self._shapes.items()}
        return int(self._engine._session.run([name], feed)[0].nbytes)

    def get_tensor_shape(self, name: str) -> Dims:
        shapes = {key: np.zeros(shape, self._numpy(key)) for key, shape in self._shapes.items()}
        return Dims(self._engine._session.run([name], shapes)[0].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queued behind the copies to the device, before those from it."""
        assert self._shapes.keys() == self._engine._inputs.keys()
        self.gpu.pending.append(self._execute)
        return True

    def _execute(self) -> None:
        feed = {name: self._at(name, shape) for name, shape in self._shapes.items()}
        names = [node.name for node in self._engine._session.get_outputs()]
        for name, found in zip(names, self._engine._session.run(names, feed), strict=True):
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(found).ctypes.data, found.nbytes)

    def _at(self, name: str, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape)) * self._numpy(name).itemsize
        return np.frombuffer(ctypes.string_at(self._addresses[name], size), self._numpy(name)).reshape(shape)

    def _numpy(self, name: str) -> np.dtype[Any]:
        return np.dtype({"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(self._engine._nodes[name].type, np.int64))


def install(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
    """Make `import tensorrt` give this module's classes, and every GPU `gpu`."""
    module = ModuleType("tensorrt")
    this = sys.modules[__name__]
    for name, value in vars(this).items():
        if isinstance(value, type) and value.__module__ == __name__:
            setattr(module, name, value)
    module.__dict__["__version__"] = VERSION
    monkeypatch.setattr(IExecutionContext, "gpu", gpu, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("server.backends.nvidia.cuda.CudaGpu", lambda number: gpu)
