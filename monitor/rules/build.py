"""A rules file → the frozen rules it stands for: read, check, look up the named metrics, fill in what it doesn't say.

Everything wrong is found before anything is said, and each finding says where, what was expected, and the nearest right words.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from monitor.alerts import Level
from monitor.metrics.families import EXPORTED
from monitor.metrics.named import NAMED
from monitor.metrics.query import Always
from monitor.rules.entries import entry_rules
from monitor.rules.file import Entry, Objective, RulesFile
from monitor.rules.model import Rule, Ruleset
from monitor.rules.objectives import objective_rules
from monitor.rules.places import Finding, complain
from monitor.rules.settings import Notifier
from server.documents import Document, read_yaml
from server.errors import ConfigError
from server.validation import complaints

PACK = Path(__file__).with_name("pack.yaml")


def read_rules(path: Path) -> Ruleset:
    """The rules of `path`, and of tidegate's own pack unless it says no. Raises ConfigError with a line for each thing that is wrong."""
    file, own, notes = _read(path)
    rules = list(own)
    if file.pack:
        taken = {rule.alert for rule in own}
        rules += [rule for rule in _read(PACK)[1] if rule.alert not in taken]
    if file.watchdog:
        rules.append(_watchdog())
    if not file.notifiers:
        file = file.model_copy(update={"notifiers": {"log": Notifier(type="log")}})
    return Ruleset(path, tuple(_with_keys(_with_runbooks(rules, file.runbooks))), file, tuple(notes))


def rules_schema() -> dict[str, Any]:
    """JSON Schema of a rules file, with the names that there are."""
    schema = RulesFile.model_json_schema()
    schema["title"] = "tidegate monitor rules"
    schema["$defs"]["Entry"]["properties"]["name"] = {
        "description": "A named metric.",
        "anyOf": [{"const": metric.name, "description": metric.what} for metric in NAMED.values()],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _read(path: Path) -> tuple[RulesFile, list[Rule], list[str]]:
    document = read_yaml(path, ConfigError)
    try:
        file = RulesFile.model_validate(document.data)
    except ValidationError as error:
        found = complaints(RulesFile, error)
        raise complain(document, [Finding(key, text, text.startswith("unknown key")) for key, text in found]) from error
    rules: list[Rule] = []
    findings: list[Finding] = [*_references(file)]
    for index, entry in enumerate(file.metrics):
        _collect(rules, findings, entry_rules(entry, ("metrics", index), prometheus=file.sources.prometheus is not None), document)
    for index, objective in enumerate(file.objectives):
        _collect(rules, findings, objective_rules(objective, ("objectives", index)), document)
    if findings:
        raise complain(document, findings)
    return file, rules, list(notes_on(rules))


def _collect(rules: list[Rule], findings: list[Finding], found: Iterable[Rule | Finding], document: Document) -> None:
    for item in found:
        if isinstance(item, Finding):
            findings.append(item)
        else:
            section, index = item.where.split(".")
            where = document.where((section, int(index)))
            rules.append(replace(item, where=where.replace(str(PACK), PACK.name)))


def notes_on(rules: Iterable[Rule]) -> Iterator[str]:
    """What has no data as things are, which isn't wrong."""
    said = set()
    for rule in rules:
        missing = [name for name in rule.families if name not in EXPORTED]
        if missing and (rule.where, rule.metric) not in said:
            said.add((rule.where, rule.metric))
            names = ", ".join(missing)
            yield f"{rule.where}: {rule.metric}: not exported by this server version: {names}; no data until something exports it"


def _references(file: RulesFile) -> Iterator[Finding]:
    """Names of notifiers and actions that the file doesn't have."""
    for section in ("metrics", "objectives"):
        items: tuple[Entry | Objective, ...] = getattr(file, section)
        for index, item in enumerate(items):
            yield from _unknown(item.notify, file.notifiers, (section, index, "notify"), "notifier")
            yield from _unknown(item.actions, file.actions, (section, index, "actions"), "action")
    for index, route in enumerate(file.routes):
        yield from _unknown(route.to, file.notifiers, ("routes", index, "to"), "notifier")


def _unknown(names: Iterable[str], known: Mapping[str, object], key: tuple[str | int, ...], kind: str) -> Iterator[Finding]:
    for name in names:
        if name not in known:
            right = difflib.get_close_matches(name, known, n=3) or list(known)
            hint = f"; this file has {', '.join(right)}" if right else f"; this file has no {kind}s"
            yield Finding(key, f"no {kind} is called {name!r}{hint}")


def _watchdog() -> Rule:
    query = Always()
    summary = "Always fires: when it stops arriving, nobody is watching"
    return Rule(
        "", "Watchdog", Level.INFO, query, query, summary=summary, labels=(("severity", "info"),), runbook="Watchdog.md", metric="watchdog"
    )


def _with_runbooks(rules: Iterable[Rule], base: str) -> Iterator[Rule]:
    for rule in rules:
        page = rule.runbook
        yield replace(rule, runbook=base + page if page and "://" not in page else page)


def _with_keys(rules: Iterable[Rule]) -> Iterator[Rule]:
    seen: Counter[str] = Counter()
    for rule in rules:
        key = f"{rule.alert}/{rule.level.severity}"
        seen[key] += 1
        yield replace(rule, key=key if seen[key] == 1 else f"{key}#{seen[key]}")
