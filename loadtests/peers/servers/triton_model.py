"""Triton's own Python backend: a batch comes as a list of requests. (Its C++ onnxruntime backend isn't in any package of PyPI.)"""

import os
import sys

sys.path.insert(0, os.environ["PEERS_SERVERS"])

import numpy as np
import triton_python_backend_utils as backend
from onnx_model import Model


class TritonPythonModel:
    def initialize(self, args):
        self.model = Model()

    def execute(self, requests):
        rows = [{name: backend.get_input_tensor_by_name(each, name).as_numpy() for name in self.model.inputs} for each in requests]
        return [backend.InferenceResponse([backend.Tensor("Y", np.ascontiguousarray(output))]) for output in self.model.run_rows(rows)]
