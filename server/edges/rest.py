"""The cold HTTP edge: health and metadata by FastAPI; extensions have the rest. It decides nothing.

…/infer is described here, for the document, and answered by infer_http.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException

from server.config import VERSION, Settings
from server.edges.extensions.route import Allow, JSONResponse, allowing
from server.edges.extensions.statistics import add_statistics
from server.edges.http_errors import body_of, headers_of, status_of
from server.errors import InvalidRequest, NotFound, TidegateError
from server.explain import report
from server.gate import Gate, Operation
from server.router.router import Router
from server.router.table import Front
from server.statistics import Statistics
from server.tensors import TensorSpec

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy(priority,timeout)",
    "sequence",
    "statistics",
    "trace",
    "logging",
    "system_shared_memory",
]
INFER_DOC = """Open Inference Protocol V2 with the binary tensor extension: JSON, or with the header
`Inference-Header-Content-Length: N` a JSON head of N bytes followed by raw tensors.

Request parameters: `timeout` (microseconds until the answer is worth nothing; 0: the model's own), `priority` (1 is served first, 0 last),
`explain` (true puts the facts of the run into the answer's parameters), `binary_data_output`."""


def build_rest(settings: Settings, gate: Gate, router: Router, ready: Callable[[], bool], statistics: Statistics) -> FastAPI:
    """The ASGI app. `ready` says whether the server takes requests (models loaded and not draining)."""
    app = FastAPI(
        title="tidegate",
        version=VERSION,
        description="Open Inference Protocol V2",
        default_response_class=JSONResponse,
        openapi_url=None,  # FastAPI's own routes for the document ask nobody
    )

    allow = allowing(gate)
    _health(app, allow, ready)
    _server(app, allow, settings)
    add_statistics(app, allow, statistics)
    _models(app, allow, router)
    _document(app, allow)
    _errors(app)
    return app


def _health(app: FastAPI, allow: Allow, ready: Callable[[], bool]) -> None:
    @app.get("/v2/health/live", tags=["health"], summary="Is the process alive")
    async def live(request: Request) -> Response:
        allow(request, Operation.HEALTH)
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", tags=["health"], summary="May requests be sent")
    async def is_ready(request: Request) -> Response:
        allow(request, Operation.HEALTH)
        return JSONResponse({"ready": ready()}, 200 if ready() else 503)


def _server(app: FastAPI, allow: Allow, settings: Settings) -> None:
    @app.get("/v2", tags=["server"], summary="Server metadata")
    async def server_metadata(request: Request) -> Response:
        allow(request, Operation.METADATA)
        return JSONResponse({"name": settings.server_name, "version": VERSION, "extensions": EXTENSIONS})


def _models(app: FastAPI, allow: Allow, router: Router) -> None:
    @app.get("/v2/models/{model}/versions/{version}", tags=["models"], summary="Model metadata")
    @app.get("/v2/models/{model}", tags=["models"], summary="Model metadata")
    async def metadata(request: Request, model: str, version: str = "") -> Response:
        allow(request, Operation.MODEL_METADATA)
        entry = router.entry(model, version)
        assert entry.serving is not None
        return JSONResponse({**_metadata(entry.serving), "versions": router.ready_versions(model), "platform": entry.platform})

    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["models"], summary="May requests be sent to this model")
    @app.get("/v2/models/{model}/ready", tags=["models"], summary="May requests be sent to this model")
    async def ready(request: Request, model: str, version: str = "") -> Response:
        allow(request, Operation.MODEL_READY)
        router.entry(model, version)
        return JSONResponse({"name": model, "ready": True})

    @app.get("/v2/models/{model}/versions/{version}/manifest", tags=["models"], summary="What the exporter proved about this version")
    @app.get("/v2/models/{model}/manifest", tags=["models"], summary="What the exporter proved about this model")
    async def manifest(request: Request, model: str, version: str = "") -> Response:
        allow(request, Operation.MANIFEST)
        entry = router.entry(model, version)
        if entry.manifest is None:
            raise NotFound(f"model '{model}' version {entry.version} has no manifest: it is a bare model file")
        return JSONResponse(entry.manifest.model_dump(mode="json"))

    @app.get("/v2/models/{model}/versions/{version}/batcher", tags=["models"], summary="How this version is batched, and why")
    @app.get("/v2/models/{model}/batcher", tags=["models"], summary="How this model is batched, and why")
    async def batcher(request: Request, model: str, version: str = "") -> Response:
        allow(request, Operation.BATCHER)
        return JSONResponse(report(router.entry(model, version)).model_dump(mode="json"))

    @app.post("/v2/models/{model}/versions/{version}/infer", tags=["inference"], summary="Infer", description=INFER_DOC)
    @app.post("/v2/models/{model}/infer", tags=["inference"], summary="Infer", description=INFER_DOC)
    async def infer(model: str, version: str = "", body: dict[str, Any] = Body(examples=[INFER_EXAMPLE])) -> Response:  # noqa: B008
        raise InvalidRequest("inference is answered before ASGI: this server isn't running behind its own protocol class")


def _document(app: FastAPI, allow: Allow) -> None:
    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        allow(request, Operation.API_DOCUMENT)
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def page(request: Request) -> Response:
        allow(request, Operation.API_DOCUMENT)
        return get_swagger_ui_html(openapi_url="/openapi.json", title="tidegate")


INFER_EXAMPLE = {"inputs": [{"name": "image", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}]}


def _metadata(engine: Front) -> dict[str, Any]:
    return {
        "name": engine.key.name,
        "inputs": [_tensor(spec) for spec in engine.inputs],
        "outputs": [_tensor(spec) for spec in engine.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _errors(app: FastAPI) -> None:
    @app.exception_handler(TidegateError)
    async def domain(request: Request, error: TidegateError) -> Response:
        return Response(body_of(error), status_of(error), headers_of(error), "application/json")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        text = {404: "Not Found", 405: "Method Not Allowed"}.get(error.status_code, str(error.detail))
        return JSONResponse({"error": text}, error.status_code, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 400)
