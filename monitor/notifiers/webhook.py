"""Alerts by HTTP POST: our own JSON, or a body made from the file's template; signed where a key is given.

A template is a mapping of texts in which {title} and its like are filled in once: what is filled in is never read as a template again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any

import httpx

from monitor.notifiers.base import Notification, NotSent, secret
from monitor.notifiers.log import described, timestamp
from monitor.rules.settings import Notifier as NotifierSettings
from monitor.rules.settings import Secret

LASTING = frozenset({400, 405, 413, 415, 422})
"""Statuses with which a receiver says that this body won't do: sending it again can't help."""


class Poster:
    """Posts JSON and says in NotSent's words what didn't work. Follows no redirects."""

    def __init__(self, settings: NotifierSettings, path: str = "") -> None:
        self._settings = settings
        self._path = path
        self._client = httpx.AsyncClient(timeout=settings.timeout, follow_redirects=False, trust_env=False)

    async def post(self, body: bytes, headers: dict[str, str]) -> None:
        token = {"authorization": f"Bearer {secret(self._settings.token)}"} if self._settings.token else {}
        url = self._url()
        try:
            answer = await self._client.post(url, content=body, headers={"content-type": "application/json", **headers, **token})
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # The error's text may hold the URL, and with it a secret.
            raise NotSent(f"{type(error).__name__} on the way to {self._shown(url)}") from error
        if not answer.is_success:
            raise NotSent(f"{self._shown(url)} answered {answer.status_code}", lasting=answer.status_code in LASTING)

    async def close(self) -> None:
        await self._client.aclose()

    def _url(self) -> str:
        where: Secret | None = self._settings.secret_url
        base = secret(where) if where else self._settings.url or ""
        return base.rstrip("/") + self._path if self._path else base

    def _shown(self, url: str) -> str:
        """The receiver's host: the rest of a URL may be a secret."""
        try:
            return httpx.URL(url).host or "the receiver"
        except httpx.InvalidURL:
            return "the receiver"


class WebhookNotifier:
    """Posts each notification, with its idempotency key."""

    def __init__(self, name: str, settings: NotifierSettings) -> None:
        self._settings = settings
        self._poster = Poster(settings)

    async def send(self, notification: Notification, now: float) -> None:
        body = json.dumps(self._body(notification, now), ensure_ascii=False).encode()
        headers = {"idempotency-key": notification.key}
        if self._settings.hmac is not None:
            headers["x-tidegate-signature"] = signature(secret(self._settings.hmac), body)
        await self._poster.post(body, headers)

    async def close(self) -> None:
        await self._poster.close()

    def _body(self, notification: Notification, now: float) -> dict[str, Any]:
        status = "firing" if notification.firing else "resolved"
        if self._settings.template is not None:
            alerts = json.dumps([described(alert) for alert in notification.alerts], ensure_ascii=False)
            words = {"status": status, "title": notification.title, "text": notification.text, "alerts": alerts}
            words["count"] = str(len(notification.alerts))
            return {key: filled(text, words) for key, text in self._settings.template.items()}
        return {
            "version": 1,
            "monitor": notification.monitor,
            "key": notification.key,
            "status": status,
            "level": notification.level,
            "title": notification.title,
            "sentAt": timestamp(now),
            "alerts": [{"status": alert.state, **described(alert)} for alert in notification.alerts],
        }


def filled(template: str, words: dict[str, str]) -> str:
    """`template` with {NAME} replaced, once; a name that nobody knows stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), template)


def signature(key: str, body: bytes) -> str:
    """What X-Tidegate-Signature says of a body: compare it in constant time."""
    return "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
