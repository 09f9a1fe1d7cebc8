"""BentoML: adaptive batching with the default patience, so that nothing is dropped."""

import base64

import bentoml
from onnx_model import INSTANCES, MAX_ROWS, Model

BATCHED = {"batchable": MAX_ROWS > 1, **({"max_batch_size": MAX_ROWS, "max_latency_ms": 60000} if MAX_ROWS > 1 else {})}


@bentoml.service(workers=INSTANCES, traffic={"timeout": 60})
class Service:
    def __init__(self):
        self.model = Model()

    @bentoml.api(**BATCHED)
    def predict(self, x: list[dict]) -> list[list[float]]:
        return [output[0].tolist() for output in self.model.run_rows([self.model.from_json(each) for each in x])]

    @bentoml.api(**BATCHED)
    def b64(self, x: list[str]) -> list[list[float]]:
        rows = [self.model.from_raw(base64.b64decode(each)) for each in x]
        return [output[0].tolist() for output in self.model.run_rows(rows)]
