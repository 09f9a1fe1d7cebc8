"""onnxruntime's sessions on the fake GPU: real ones on the CPU, bound to its plain memory, that compute when its stream comes to them."""

from __future__ import annotations

from typing import Any

import pytest

from server.backends.base import VariantSpec
from server.backends.ort.gpu import OnnxRuntimeOnGpu
from server.backends.ort.session import create, session_options
from tests.nvidia.fake_gpu import FakeGpu


class OnStream:
    """A session that computes on a stream: what the stream was given before is done first. It may be told to fail."""

    def __init__(self, session: Any, gpu: FakeGpu) -> None:
        self._session, self._gpu = session, gpu
        self.fails: Exception | None = None
        self.options: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.options = options
        self._gpu.flush()
        if self.fails is not None:
            raise self.fails
        self._session.run_with_iobinding(binding, options)


def opened_on(spec: VariantSpec, gpu: FakeGpu) -> OnnxRuntimeOnGpu:
    """The backend for GPUs on the fake one."""
    session = OnStream(create(spec, session_options(spec), ["CPUExecutionProvider"]), gpu)
    return OnnxRuntimeOnGpu(spec, session, gpu, gpu.stream(), ("cpu", 0))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have onnxruntime's backend open what is for a GPU on a fake one of its own."""
    monkeypatch.setattr(OnnxRuntimeOnGpu, "on", classmethod(lambda cls, spec, device: opened_on(spec, FakeGpu())))
