"""What may be done to a server when an alert fires, by its admin API: opt-in, audited, and held back when it happens too often."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from monitor.alerts import Alert
from monitor.notifiers.base import NotSent, secret
from monitor.rules.settings import Action
from monitor.store import Store

HOUR = 3600.0
MAX_INCIDENT = 64 << 20  # bytes

REQUESTS: Mapping[str, tuple[str, str]] = {
    "step_precision": ("POST", "/admin/models/{model}/precision/step"),
    "rollback_canary": ("POST", "/admin/models/{model}/canary/rollback"),
    "shed": ("PUT", "/admin/models/{model}/admission"),
    "capture": ("POST", "/admin/incident"),
}
"""What is done → where the server does it. A server that answers 404 has no such thing (yet); that is recorded, and nothing else."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action."""

    action: str
    alert: str
    text: str


class Actions:
    """The actions of a rules file."""

    def __init__(self, actions: Mapping[str, Action], store: Store, identity: str) -> None:
        self._actions = actions
        self._store = store
        self._identity = identity

    async def take(self, name: str, alert: Alert, now: float) -> Outcome:
        """Do it, unless it was done too often in the last hour. What the server says is in the outcome and the audit, never raised."""
        action = self._actions[name]
        if self._store.actions_since(now - HOUR, name) >= action.at_most:
            text = f"held back: done {action.at_most} times in the last hour"
        else:
            text = await self._post(action, alert)
        self._store.audit(now, name, alert.fingerprint, text)
        return Outcome(name, alert.name, text)

    async def _post(self, action: Action, alert: Alert) -> str:
        model = action.model or dict(alert.labels).get("model", "")
        method, path = REQUESTS[action.do]
        if "{model}" in path and not model:
            return "failed: the alert names no model; give the action its `model`"
        url = action.url.rstrip("/") + path.format(model=quote(model, safe=""))
        try:
            token = {"authorization": f"Bearer {secret(action.token)}"} if action.token else {}
            async with (
                httpx.AsyncClient(timeout=action.timeout, follow_redirects=False, trust_env=False) as client,
                client.stream(method, url, json=self._body(action, alert), headers=token) as answer,
            ):
                if answer.status_code == 404:
                    return f"failed: the server has no {path} (404)"
                if not answer.is_success:
                    return f"failed: the server answered {answer.status_code}"
                return await _kept(answer, action, alert) if action.do == "capture" else "done"
        except (NotSent, httpx.HTTPError, httpx.InvalidURL) as error:
            return f"failed: {str(error) or type(error).__name__}"
        except OSError as error:
            return f"failed: {action.folder}: {error.strerror or error}"

    def _body(self, action: Action, alert: Alert) -> dict[str, Any]:
        if action.do == "shed":
            return {"min_priority": action.below_priority, "ttl_s": action.ttl}
        return {"reason": f"alert {alert.name}", "by": self._identity, "fingerprint": alert.fingerprint}


async def _kept(answer: httpx.Response, action: Action, alert: Alert) -> str:
    """Keep an incident. Raises OSError."""
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > MAX_INCIDENT:
            return f"failed: the server's answer is larger than {MAX_INCIDENT >> 20} MiB"
    path = action.folder / f"incident-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{alert.fingerprint[:8]}.jsonl"
    await asyncio.to_thread(_write, path, body, action.keep)
    return f"done: {path}"


def _write(path: Path, body: bytearray, keep: int) -> None:
    """A file, whole or not at all, that only its owner may read; the oldest beyond `keep` go. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(body)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    for old in sorted(path.parent.glob("incident-*.jsonl"))[:-keep]:
        old.unlink(missing_ok=True)
