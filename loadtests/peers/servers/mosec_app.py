"""Mosec: its Rust front and batcher, one worker process an instance, JSON by orjson or raw bytes."""

import orjson
from mosec import Runtime, Server, Worker
from onnx_model import DELAY_MS, INSTANCES, MAX_ROWS, Model


class Json(Worker):
    def __init__(self):
        super().__init__()
        self.model = Model()

    def deserialize(self, data):
        return self.model.from_json(orjson.loads(data)["inputs"])

    def forward(self, data):
        return self.model.run_rows(data) if isinstance(data, list) else self.model.run_rows([data])[0]

    def serialize(self, output):
        return orjson.dumps({"output": output.tolist()})


class Raw(Json):
    def deserialize(self, data):
        return self.model.from_raw(data)

    def serialize(self, output):
        return output.tobytes()


if __name__ == "__main__":
    terms = {"num": INSTANCES, "max_batch_size": MAX_ROWS, "max_wait_time": int(max(1, DELAY_MS))}  # 0 means its default, 10 ms
    server = Server()
    routes = {"/predict": [Runtime(Json, **terms)]}
    if len(Model().inputs) == 1:
        routes["/raw"] = [Runtime(Raw, **terms)]
    server.register_runtime(routes)
    server.run()
