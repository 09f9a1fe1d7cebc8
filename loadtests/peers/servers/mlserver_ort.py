"""MLServer: a custom runtime; a heavy model runs in a thread."""

import asyncio

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import THREADS, Model


class OrtModel(MLModel):
    async def load(self):
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        output = await asyncio.to_thread(self.model.run, feeds) if THREADS > 1 else self.model.run(feeds)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[NumpyCodec.encode_output("Y", output)])
