"""Routes, receivers and inhibition for an Alertmanager, from the rules file's. What it can't say is a comment at the head, not silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monitor.metrics.query import labels_by, promql_duration
from monitor.render.prometheus_rule import HEADER, dump
from monitor.rules.model import Ruleset
from monitor.rules.settings import Notifier

NOBODY = "nobody"


def alertmanager_yaml(ruleset: Ruleset) -> str:
    """The configuration as text."""
    notes = "".join(f"# not said here: {note}\n" for note in _notes(ruleset))
    return HEADER + notes + dump(configuration(ruleset))


def alertmanager_files(ruleset: Ruleset) -> dict[str, str]:
    """File name → text."""
    return {"alertmanager.yaml": alertmanager_yaml(ruleset)}


def configuration(ruleset: Ruleset) -> dict[str, Any]:
    """The configuration as plain values."""
    settings, group = ruleset.settings, ruleset.settings.group
    route: dict[str, Any] = {
        "receiver": NOBODY,
        "group_by": list(group.by),
        "group_wait": promql_duration(group.wait),
        "group_interval": promql_duration(group.interval),
        "repeat_interval": promql_duration(group.repeat),
        "routes": list(_routes(ruleset)),
    }
    receivers = [{"name": NOBODY}, *(_receiver(name, notifier) for name, notifier in settings.notifiers.items())]
    return {"route": route, "receivers": receivers, "inhibit_rules": list(_inhibitions(ruleset)) if settings.inhibit else []}


def _routes(ruleset: Ruleset) -> Iterator[dict[str, Any]]:
    """A rule's own notifiers first, then the file's routes; every notifier of one is a route that goes on to the next."""
    settings = ruleset.settings
    for rule in ruleset.rules:
        if rule.notify:
            yield from _to(rule.notify, {"alertname": rule.alert, "severity": rule.level.severity}, go_on=False)
    for route in settings.routes:
        severity = {"severity": route.level.severity} if route.level else {}
        yield from _to(route.to, {**severity, **route.match}, go_on=route.go_on)
    if not settings.routes:
        yield from _to(tuple(settings.notifiers), {}, go_on=False)


def _to(names: tuple[str, ...], match: dict[str, str], *, go_on: bool) -> Iterator[dict[str, Any]]:
    matchers = [f'{name}="{_escaped(value)}"' for name, value in match.items()]
    for index, name in enumerate(names or (NOBODY,)):
        last = index == len(names or (NOBODY,)) - 1
        yield {"receiver": name, **({"matchers": matchers} if matchers else {}), "continue": go_on or not last}


def _receiver(name: str, notifier: Notifier) -> dict[str, Any]:
    """A webhook is one here too; what Alertmanager has no means for is a receiver that sends nothing."""
    if notifier.type != "webhook":
        return {"name": name}
    hook: dict[str, Any] = {"send_resolved": notifier.resolved}
    if notifier.secret_url is None:
        hook["url"] = notifier.url
    elif notifier.secret_url.file is not None:
        hook["url_file"] = str(notifier.secret_url.file)
    else:
        return {"name": name}
    if notifier.token is not None and notifier.token.file is not None:
        hook["http_config"] = {"authorization": {"credentials_file": str(notifier.token.file)}}
    return {"name": name, "webhook_configs": [hook]}


def _inhibitions(ruleset: Ruleset) -> Iterator[dict[str, Any]]:
    """A more urgent alert silences a less urgent one whose other labels are equal."""
    labels = {label for rule in ruleset.rules for label in (*labels_by(rule.value), *(name for name, _ in rule.labels))}
    equal = ["alertname", *sorted(labels - {"severity"})]
    for source, target in (("critical", "warning|info"), ("warning", "info")):
        yield {"source_matchers": [f'severity="{source}"'], "target_matchers": [f'severity=~"{target}"'], "equal": equal}


def _notes(ruleset: Ruleset) -> Iterator[str]:
    for name, notifier in ruleset.settings.notifiers.items():
        if notifier.type != "webhook":
            yield f"notifier {name}: Alertmanager has none of type {notifier.type}; give its receiver what it should send"
        elif notifier.secret_url is not None and notifier.secret_url.file is None:
            yield f"notifier {name}: its URL is in an environment variable, which Alertmanager doesn't read; use a file"
        elif notifier.secret_url is not None:
            yield f"notifier {name}: url_file needs Alertmanager 0.26"
        if notifier.hmac is not None or notifier.template is not None:
            yield f"notifier {name}: Alertmanager's webhooks have a body of their own, unsigned"
    for window in ruleset.settings.maintenance:
        yield f"maintenance {window.name}: make a silence of it (amtool silence add)"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
