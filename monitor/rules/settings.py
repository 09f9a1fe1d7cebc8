"""What a rules file says besides its rules: where figures come from, who is told, when silence is wanted, what may be done."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from monitor.alerts import Level
from server.units import duration
from server.validation import nearest

_SPAN = WithJsonSchema({"type": ["number", "string"], "examples": ["30s", "5m"]})


def _words(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _level(value: object) -> Level:
    if isinstance(value, str) and value.upper() in list(Level):
        return Level(value.upper())
    raise ValueError(f"got {str(value)[:64]!r}{nearest(str(value).upper(), [level.value for level in Level])}")


Span: TypeAlias = Annotated[float, BeforeValidator(duration), _SPAN]
Interval: TypeAlias = Annotated[float, BeforeValidator(duration), Field(ge=0.1, le=3600), _SPAN]
Words: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_words)]
Url: TypeAlias = Annotated[str, Field(pattern=r"^https?://\S+$")]
LevelName: TypeAlias = Annotated[Level, BeforeValidator(_level)]


class Part(BaseModel):
    """A part of the settings: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Secret(Part):
    """A secret's whereabouts; it is never in the file itself."""

    env: str | None = Field(default=None, description="The environment variable that holds it.")
    file: Path | None = Field(default=None, description="The file that holds it.")

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either `env: VARIABLE` or `file: PATH`")
        return self


class Sources(Part):
    """Where figures come from."""

    targets: tuple[str, ...] = Field(
        default=("127.0.0.1:8002",), description="HOST:PORT, a URL, or dns://NAME:PORT for every address of a headless Service."
    )
    dcgm: tuple[str, ...] = Field(default=(), description="DCGM exporters, written as targets are.")
    prometheus: Url | None = Field(default=None, description="A Prometheus server; then it answers every rule, and targets aren't scraped.")
    token: Secret | None = Field(default=None, description="Bearer token for the targets or Prometheus.")
    nvml: Literal["auto", "on", "off"] = Field(
        default="auto", description="GPU figures from this machine's driver; auto: where there is one."
    )
    host: bool = Field(default=True, description="Whether this machine's CPU and memory are watched.")
    timeout: Interval = Field(default=3.0, description="How long a target has to answer.")
    max_bytes: int = Field(default=16 << 20, ge=1024, le=256 << 20, description="The largest answer that is read.")
    allow_link_local: bool = Field(default=False, description="Whether link-local and cloud metadata addresses may be asked.")


class Notifier(Part):
    """Somebody who is told."""

    type: Literal["log", "webhook", "alertmanager", "apprise"] = Field(description="How.")
    url: Url | None = Field(default=None, description="Of a webhook or an Alertmanager.")
    secret_url: Secret | None = Field(default=None, description="The URL, where it's a secret; of apprise always.")
    hmac: Secret | None = Field(default=None, description="Key that signs a webhook's body (X-Tidegate-Signature: sha256=…).")
    token: Secret | None = Field(default=None, description="Bearer token of a webhook or an Alertmanager.")
    template: dict[str, str] | None = Field(
        default=None, description="A webhook's own body: key → text with {status}, {title}, {text}, {alerts} and {count}."
    )
    resolved: bool = Field(default=True, description="Whether it's told when an alert is over.")
    timeout: Interval = Field(default=10.0, description="How long it has to answer.")

    @model_validator(mode="after")
    def _complete(self) -> Notifier:
        given = {"url": self.url is not None, "secret_url": self.secret_url is not None}
        if self.type in ("webhook", "alertmanager") and sum(given.values()) != 1:
            raise ValueError(f"a notifier of type {self.type} needs `url`, or `secret_url` with env or file")
        if self.type == "apprise" and not given["secret_url"]:
            raise ValueError("a notifier of type apprise needs `secret_url` with env or file: its URLs hold passwords")
        return self


class Route(Part):
    """Which alerts a notifier gets: all that match. The first route that matches counts, unless it says `go_on`."""

    to: Words = Field(description="Names of notifiers.")
    level: LevelName | None = Field(default=None, description="Only this level.")
    match: dict[str, str] = Field(default={}, description="Only alerts with these labels.")
    go_on: bool = Field(default=False, description="Whether later routes are looked at too.")


class Group(Part):
    """How alerts are gathered into notifications."""

    by: tuple[str, ...] = Field(default=("alertname", "model"), description="Alerts that agree in these labels come together.")
    wait: Span = Field(default=0.0, description="How long the first notification of a group waits for more alerts.")
    interval: Span = Field(default=60.0, description="The least time between two notifications of a group that changed; damps flapping.")
    repeat: Span = Field(default=4 * 3600.0, description="When a group that still fires is told again.")


class Maintenance(Part):
    """A time in which matching alerts are judged but nobody is told."""

    name: str = Field(description="What it is.")
    start: datetime | None = Field(default=None, description="From when, such as 2026-12-01T22:00:00Z.")
    end: datetime | None = Field(default=None, description="Until when.")
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(default=(), description="Or: on these days …")
    at: tuple[time, time] | None = Field(default=None, description="… between these times of day.")
    zone: str = Field(default="UTC", description="Time zone of `at`.")
    match: dict[str, str] = Field(default={}, description="Only alerts with these labels.")

    @model_validator(mode="after")
    def _complete(self) -> Maintenance:
        once, weekly = self.start is not None and self.end is not None, self.at is not None
        if once == weekly:
            raise ValueError("give either `start` and `end`, or `at: [FROM, TO]` with `days`")
        if self.start is not None and self.end is not None:
            if self.start.tzinfo is None or self.end.tzinfo is None:
                raise ValueError("`start` and `end` need a time zone, such as 2026-12-01T22:00:00Z")
            if self.start >= self.end:
                raise ValueError("`start` must be before `end`")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"no such time zone {self.zone!r}") from error
        return self


class Action(Part):
    """Something done to the server by its admin API when an alert fires."""

    do: Literal["step_precision", "rollback_canary", "shed", "capture"] = Field(description="What.")
    url: Url = Field(default="http://127.0.0.1:8000", description="The server.")
    token: Secret | None = Field(default=None, description="Bearer token of a principal that may control it.")
    model: str | None = Field(default=None, description="Which model; else the alert's.")
    below_priority: int | None = Field(default=None, ge=1, description="Of shed: requests of lower priority are refused.")
    ttl: Interval = Field(default=300.0, description="Of shed: for how long.")
    folder: Path = Field(default=Path("incidents"), description="Of capture: where what the server answers is kept, a file each.")
    keep: int = Field(default=20, ge=1, le=10_000, description="Of capture: how many files; the oldest goes.")
    at_most: int = Field(default=3, ge=1, le=100, description="How often in an hour.")
    timeout: Interval = Field(default=10.0, description="How long the server has to answer.")

    @model_validator(mode="after")
    def _whom(self) -> Action:
        if self.do == "shed" and self.below_priority is None:
            raise ValueError("`do: shed` needs `below_priority`: requests of lower priority than that are refused")
        return self


class Settings(Part):
    """All of them."""

    interval: Interval = Field(default=5.0, description="How often targets are scraped and rules judged.")
    sources: Sources = Sources()
    notifiers: Mapping[str, Notifier] = Field(default={}, description="Who is told: a name of yours → how.")
    routes: tuple[Route, ...] = Field(default=(), description="Who gets what; without routes every notifier gets everything.")
    group: Group = Group()
    inhibit: bool = Field(default=True, description="Whether a CRITICAL alert silences the WARNING of the same thing.")
    maintenance: tuple[Maintenance, ...] = Field(default=(), description="When nobody is to be told.")
    actions: Mapping[str, Action] = Field(default={}, description="What may be done: a name of yours → what. None unless given.")
    state: Path = Field(default=Path("monitor.db"), description="Where alerts and unsent notifications outlive a restart.")
    listen: str | None = Field(
        default=None, pattern=r"^[^\s:]*:[0-9]+$|^\[[0-9a-f:]+\]:[0-9]+$", description="HOST:PORT of the monitor's own /metrics and health."
    )
    runbooks: str = Field(default="docs/runbooks/", description="What stands before a runbook's name.")
    identity: str = Field(default="tidegate-monitor", min_length=1, max_length=128, description="This monitor's name in what it sends.")
