"""FastAPI as it's mostly written: no batching, a pydantic body, a sync handler in its thread pool; or raw bytes."""

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from onnx_model import Model
from pydantic import BaseModel

app, model = FastAPI(), Model()


class Body(BaseModel):
    inputs: dict[str, list]


@app.get("/ready")
def ready():
    return {"ready": True}


@app.post("/predict")
def predict(body: Body):
    return {"output": model.run(model.from_json(body.inputs)).tolist()}


@app.post("/raw")
async def raw(request: Request):
    output = await run_in_threadpool(model.run, model.from_raw(await request.body()))
    return Response(output.tobytes(), media_type="application/octet-stream")
