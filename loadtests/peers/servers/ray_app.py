"""Ray Serve: one deployment, @serve.batch, the raw Starlette request."""

import asyncio
import os
import signal
import time

import orjson
import ray
from onnx_model import DELAY_MS, INSTANCES, MAX_ROWS, PORT, THREADS, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=INSTANCES, max_ongoing_requests=512, ray_actor_options={"num_cpus": 1})
class Deployment:
    def __init__(self):
        self.model = Model()

    @serve.batch(max_batch_size=MAX_ROWS, batch_wait_timeout_s=DELAY_MS / 1e3)
    async def infer(self, rows):
        if THREADS > 1:  # a heavy model: keep the replica's loop free
            return await asyncio.to_thread(self.model.run_rows, rows)
        return self.model.run_rows(rows)

    async def __call__(self, request: Request):
        body = await request.body()
        if request.url.path == "/raw":
            output = await self.infer(self.model.from_raw(body))
            return Response(output.tobytes(), media_type="application/octet-stream")
        output = await self.infer(self.model.from_json(orjson.loads(body)["inputs"]))
        return Response(orjson.dumps({"output": output.tolist()}), media_type="application/json")


if __name__ == "__main__":
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=4, _temp_dir=os.environ["RAY_FOLDER"], object_store_memory=200_000_000, **quiet)
    logs = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config=logs)
    serve.run(Deployment.bind(), route_prefix="/", logging_config=logs)
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(1))
    while not stop:
        time.sleep(0.2)
    serve.shutdown()
    ray.shutdown()
