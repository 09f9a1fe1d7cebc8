"""LitServe: one API server process, workers as instances, its batching."""

import base64

import litserve
from onnx_model import DELAY_MS, INSTANCES, MAX_ROWS, PORT, Model


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = Model()

    def decode_request(self, request):
        if "b64" in request:
            return self.model.from_raw(base64.b64decode(request["b64"]))
        return self.model.from_json(request["inputs"])

    def batch(self, inputs):
        return inputs

    def predict(self, inputs):
        return self.model.run_rows(inputs if isinstance(inputs, list) else [inputs])

    def unbatch(self, outputs):
        return outputs

    def encode_response(self, output):
        return {"output": (output[0] if isinstance(output, list) else output).tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_ROWS, batch_timeout=DELAY_MS / 1e3)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=INSTANCES, timeout=60, fast_queue=True)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, num_api_servers=1, log_level="error", access_log=False)
