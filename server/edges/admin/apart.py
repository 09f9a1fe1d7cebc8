"""Which port answers /admin: its own where it has one, and then no other. What the ports share is the same app, seen through a filter."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

ADMIN = "/admin"
ON_ADMIN_PORT = (ADMIN, "/v2/health", "/v2/repository")
"""What the admin port answers: besides /admin, health, and the repository, so that who loads models and who routes to them asks one
address. The repository extension stays on the other port too, where its stock clients look for it, and the gate asks both for the token."""


def without_admin(app: ASGIApp) -> ASGIApp:
    """`app` for the port of inference."""
    return _filtered(app, lambda path: not _within(path, ADMIN), "is answered on the admin port only (admin.port)")


def admin_only(app: ASGIApp) -> ASGIApp:
    """`app` for the admin port."""
    said = f"isn't answered on the admin port: it has {', '.join(ON_ADMIN_PORT)}"
    return _filtered(app, lambda path: any(_within(path, prefix) for prefix in ON_ADMIN_PORT), said)


def _filtered(app: ASGIApp, passes: Callable[[str], bool], said: str) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if passes(path):
            await app(scope, receive, send)
            return
        body = orjson.dumps({"error": f"{path[:200]} {said}"})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
