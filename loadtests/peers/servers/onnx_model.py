"""What the peers' servers share, so that all do the same work: the model, the settings (from the environment), how rows become a batch.

These files run in each peer's own virtual environment; nothing of tidegate is imported.
"""

import os

import numpy as np
import onnxruntime

PORT = int(os.environ.get("PORT", "8000"))
MODEL = os.environ.get("MODEL", "")
NAME = os.environ.get("WORKLOAD", "")
MAX_ROWS = int(os.environ.get("MAX_ROWS", "32"))
DELAY_MS = float(os.environ.get("DELAY_MS", "1"))
THREADS = int(os.environ.get("THREADS", "1"))
INSTANCES = int(os.environ.get("INSTANCES", "1"))
NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Model:
    """The ONNX file, without spinning threads: client and server share the cores."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: (NUMPY[each.type], each.shape[1:]) for each in self.session.get_inputs()}

    def from_json(self, values):
        """{"X": [[…]]} as arrays."""
        return {name: np.asarray(values[name], kind) for name, (kind, _) in self.inputs.items()}

    def from_raw(self, content):
        """The bytes of the only input's one row."""
        ((name, (kind, shape)),) = self.inputs.items()
        return {name: np.frombuffer(content, kind).reshape(1, *shape)}

    def run(self, feeds):
        """The first output."""
        return self.session.run(None, feeds)[0]

    def run_rows(self, requests):
        """One output for each request, by one run; texts of unlike length are padded with zeros."""
        counts = [len(next(iter(request.values()))) for request in requests]
        outputs = self.run({name: stacked([request[name] for request in requests]) for name in self.inputs})
        return np.split(outputs, np.cumsum(counts)[:-1])


def stacked(arrays):
    """Rows below one another, as long as the longest."""
    if len(arrays) == 1:
        return arrays[0]
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    longest = max(array.shape[1] for array in arrays)
    return np.concatenate([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])
