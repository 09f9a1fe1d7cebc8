"""What may be done to a server when an alert fires, by its admin API: opt-in, audited, and held back when it happens too often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from monitor.alerts import Alert
from monitor.notifiers.base import NotSent, secret
from monitor.rules.settings import Action
from monitor.store import Store

HOUR = 3600.0

PATHS: Mapping[str, str] = {
    "step_precision": "/admin/models/{model}/precision/step",
    "rollback_canary": "/admin/models/{model}/canary/rollback",
    "shed": "/admin/shed",
    "capture": "/admin/incidents",
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
        path = PATHS[action.do]
        if "{model}" in path and not model:
            return "failed: the alert names no model; give the action its `model`"
        url = action.url.rstrip("/") + path.format(model=quote(model, safe=""))
        try:
            token = {"authorization": f"Bearer {secret(action.token)}"} if action.token else {}
            async with httpx.AsyncClient(timeout=action.timeout, follow_redirects=False, trust_env=False) as client:
                answer = await client.post(url, json=self._body(action, alert), headers=token)
        except (NotSent, httpx.HTTPError, httpx.InvalidURL) as error:
            return f"failed: {str(error) or type(error).__name__}"
        if answer.status_code == 404:
            return f"failed: the server has no {path} (404)"
        return "done" if answer.is_success else f"failed: the server answered {answer.status_code}"

    def _body(self, action: Action, alert: Alert) -> dict[str, Any]:
        body: dict[str, Any] = {"reason": f"alert {alert.name}", "by": self._identity, "fingerprint": alert.fingerprint}
        if action.below_priority is not None:
            body["below_priority"] = action.below_priority
        return body
