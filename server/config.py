"""The server's settings: read once, frozen, and checked. A flag wins over `TIDEGATE_*`, that over server.yaml, that over the default.

Every setting has one flat name in all three places: `limits: {max_body: …}` in the file is TIDEGATE_LIMITS_MAX_BODY and --limits-max-body.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError, model_validator

from server.documents import Document, read_yaml
from server.errors import ConfigError
from server.quantities import Allowances, Bytes, Count, Names, OptionalPort, Port, Seconds, Share, StateAt, Timeout, Words
from server.validation import KeyPath, complaints, nearest

PREFIX = "TIDEGATE_"


def _installed_version() -> str:
    try:
        return version("tidegate")
    except PackageNotFoundError:
        return "0+source"


VERSION = _installed_version()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: object) -> object:
        """A section without content is one without settings."""
        return {} if values is None else values


class Limits(_Section):
    """What one client, and all of them together, may take."""

    max_body: Bytes = Field(default=64 << 20, description="Largest request body, after decompression.")
    max_json_body: Bytes = Field(default=16 << 20, description="Largest JSON body; larger tensors belong into the binary extension.")
    inflight_bytes: Bytes = Field(default=1 << 30, description="Request bytes held at once over all connections; reads pause, then 503.")
    json_offload: Bytes = Field(
        default=256 << 10, description="JSON bodies and typed gRPC contents over this are decoded in a helper process."
    )
    body_timeout: Timeout = Field(default=30.0, description="Longest time between a request's first byte and its last.")
    pipeline_depth: int = Field(default=64, ge=1, le=65536, description="Unanswered requests of a connection at which its reading pauses.")
    pipeline_bytes: Bytes = Field(default=8 << 20, description="Unsent answer bytes of a connection at which its reading pauses.")
    receive_buffer: Bytes = Field(
        default=512 << 10, description="Bytes that the kernel takes in beyond what was read of a connection; more suits long, fast lines."
    )
    regions: int = Field(default=512, ge=1, le=65536, description="Shared memory regions that clients may register.")
    region_bytes: Bytes = Field(default=16 << 30, description="Their bytes together.")
    max_header_bytes: Bytes = Field(default=64 << 10, description="Largest request line and headers together.")
    variant_memory: Bytes | None = Field(default=None, description="Most memory of one device that models may take; default: no limit.")

    @model_validator(mode="after")
    def _fits(self) -> Limits:
        if self.inflight_bytes < self.max_body:
            raise ValueError(
                f"inflight_bytes ({self.inflight_bytes}) is less than max_body ({self.max_body}): such a body could never come in"
            )
        return self


class Grpc(_Section):
    """The gRPC port's own limits; those of `limits` hold for it too."""

    max_message: Bytes = Field(default=64 << 20, description="Largest request message over gRPC, after decompression.")
    max_streams: int = Field(default=1000, ge=1, le=1 << 20, description="Calls that one gRPC connection may have open at once.")
    compression: Literal["none", "gzip", "deflate"] = Field(
        default="none", description="How gRPC answers are compressed for clients that can read it."
    )
    keepalive_time: Timeout = Field(default=7200.0, description="How long a gRPC connection may be silent before it's pinged.")
    keepalive_timeout: Timeout = Field(default=20.0, description="How long that ping's answer may take before the connection is closed.")
    min_ping_interval: Timeout = Field(default=10.0, description="gRPC clients that ping more often than this are sent away.")


class Tls(_Section):
    """TLS of the HTTP and gRPC ports; off without a certificate."""

    certfile: FilePath | None = Field(default=None, description="Certificate chain, PEM.")
    keyfile: FilePath | None = Field(default=None, description="Private key, PEM; not needed where certfile holds it too.")
    keyfile_password: str | None = Field(default=None, repr=False, description="Password of the private key.")
    ca_certs: FilePath | None = Field(default=None, description="Clients must show a certificate that one of these authorities signed.")

    @model_validator(mode="after")
    def _has_certificate(self) -> Tls:
        others = [name for name in ("keyfile", "keyfile_password", "ca_certs") if getattr(self, name) is not None]
        if others and self.certfile is None:
            raise ValueError(f"{others[0]} needs certfile")
        return self


class Admin(_Section):
    """Who may do more than infer and read, and where."""

    port: OptionalPort = Field(default=None, description="Port of its own for /admin, which no other answers then; 0 for any free one.")
    token_file: Path | None = Field(default=None, description="Tokens: lines of `name:sha256 of the token:classes`; see docs/security.md.")


class Log(_Section):
    """Logs, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least severe line that's written.")
    format: Literal["auto", "json", "console"] = Field(default="auto", description="auto: for people on a terminal, JSON elsewhere.")
    slow: Timeout = Field(default=1.0, description="A request that takes longer is logged with its phases.")
    access_sample: Share = Field(default=0.0, description="Share of the other requests that is logged too.")


class LaneDefaults(_Section):
    """Where models run that don't say it themselves."""

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda:[0-9]+)$", description="cpu or cuda:N.")
    threads: Count = Field(
        default=0, description="Threads a run takes; 0 or auto: chosen by the backend.", json_schema_extra={"type": ["integer", "string"]}
    )
    count: Count = Field(
        default=0, description="Lanes a model has; 0 or auto: chosen at warm-up.", json_schema_extra={"type": ["integer", "string"]}
    )


class Recording(_Section):
    """What is written to disk about requests; nothing without a folder."""

    dir: Path | None = Field(default=None, description="Folder for arrivals and tensors, of its own for each server; docs/recording.md.")
    sample: Share = Field(default=0.01, description="Share of requests whose tensors are written too, with recording.tensors.")
    tensors: bool = Field(default=False, description="Whether the tensors of sampled requests are written: they are what clients sent.")
    max_bytes: Annotated[Bytes, Field(ge=1 << 20)] = Field(default=1 << 30, description="Most bytes in the folder; the oldest files go.")


class Metrics(_Section):
    """What /metrics shows beside what it always does."""

    histograms: bool = Field(default=False, description="Triton's histograms of latency (nv_*_histogram_us); 50 series a version.")
    summaries: bool = Field(default=False, description="Triton's quantiles of the last minute (nv_*_summary_us); a version keeps some MB.")
    gpu: bool = Field(default=True, description="Whether the GPUs' figures are read, by NVML, where there are any.")


class Tracing(_Section):
    """Traces of requests; none without an endpoint."""

    endpoint: str | None = Field(
        default=None, pattern=r"^https?://[^\s]+$", description="Collector that spans are sent to by OTLP over HTTP: http://127.0.0.1:4318."
    )
    sample: Share = Field(default=0.01, description="Share of requests that are traced, of those that belong to no trace yet.")


class Redis(_Section):
    """The way to a state that servers share: state: redis://…"""

    password_file: FilePath | None = Field(default=None, description="File with the password of state: redis://USER@…")
    password: str | None = Field(default=None, repr=False, description="The password itself: by TIDEGATE_REDIS_PASSWORD.")
    ca_certs: FilePath | None = Field(default=None, description="With rediss://: authorities of its certificate, else the system's.")
    certfile: FilePath | None = Field(default=None, description="With rediss://: the certificate that is shown to it, PEM.")
    keyfile: FilePath | None = Field(default=None, description="Its private key, PEM.")
    prefix: str = Field(default="tidegate", pattern=r"^[A-Za-z0-9_.{}-]{1,64}$", description="What the names of all keys begin with.")
    timeout: Timeout = Field(default=1.0, description="Longest time that an answer of it is waited for.")


class Engines(_Section):
    """TensorRT engines that are built on this machine."""

    cache: Path | None = Field(
        default=None, description="Folder that they're kept in, this user's alone; default ~/.cache/tidegate/engines."
    )
    build: bool = Field(
        default=False,
        description="Whether one that's missing or doesn't fit this GPU is built by `tidegate export engine` while its ONNX file serves.",
    )
    build_timeout: Timeout = Field(default=3600.0, description="Longest that a build may take.")


class Settings(_Section):
    """All settings of `tidegate serve`."""

    repository: Path = Field(description="Folder with the models: NAME/VERSION/model.onnx.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to bind; others than loopback are seen by the network.")
    http_port: Port = Field(default=8000, description="HTTP port; 0 for any free one.")
    grpc_port: OptionalPort = Field(default=8001, description="gRPC port; 0 for any free one, off for none.")
    metrics_port: Port = Field(default=8002, description="Port of /metrics; 0 for any free one.")
    server_name: str = Field(default="tidegate", min_length=1, max_length=256, description="Name in the server metadata.")
    model_control: Literal["none", "poll", "explicit"] = Field(
        default="none", description="Who has models loaded: none (all are, once, at the start), poll (what changes), explicit (clients)."
    )
    model_control_poll: Timeout = Field(default=5.0, description="With poll: time between two looks at the repository.")
    state: StateAt | None = Field(
        default=None, description="File for what must outlive a restart, or redis://[user@]host[:port][/db] for a fleet; else in memory."
    )
    load_model: Names = Field(default=(), description="With explicit: the models that are loaded at the start; '*' for all.")
    allow: Allowances = Field(
        default=(), description="What clients with the class control may do besides: upload models, name files, register shared memory."
    )
    ready_when: Words = Field(default="all", description="Ready once all models are, or any, or the named ones.")
    drain_delay: Seconds = Field(default=5.0, description="On SIGTERM, how long requests are still accepted while readiness says no.")
    drain_timeout: Seconds = Field(default=30.0, description="Then, how long accepted requests have to be answered.")
    keep_alive: Timeout = Field(default=75.0, description="How long an idle connection is kept.")
    limits: Limits = Limits()
    grpc: Grpc = Grpc()
    tls: Tls = Tls()
    admin: Admin = Admin()
    log: Log = Log()
    lanes: LaneDefaults = LaneDefaults()
    recording: Recording = Recording()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    redis: Redis = Redis()
    engines: Engines = Engines()
    files_dir: Path | None = Field(default=None, description="Folder of the files that clients may name, with allow: files.")

    @model_validator(mode="after")
    def _loads(self) -> Settings:
        if self.load_model and self.model_control != "explicit":
            raise ValueError(f"load_model needs model_control: explicit; with {self.model_control} every model is loaded")
        return self


def load_settings(file: Path | None, flags: Mapping[str, object], environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of server.yaml (`file`), the environment and the flags, which win in this order.

    Flags carry flat names or sections ({"log_level": …} or {"log": {"level": …}}); None is a flag that wasn't given. Raises ConfigError
    that names file and line, variable or flag.
    """
    document = read_yaml(file) if file else Document(Path("server.yaml"), {}, {}, ConfigError)
    values = dict(document.data)
    origins: dict[KeyPath, str] = {}
    for key, name, value in (*_from_environment(os.environ if environment is None else environment), *_from_flags(flags, ())):
        _put(values, key, value, document)
        origins[key] = name
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        found = [_message(key, text, origins, document if file else None) for key, text in complaints(Settings, error)]
        raise ConfigError("; ".join(found)) from error


def unread_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """A warning for each TIDEGATE_* variable that no setting reads. Kubernetes' service links aren't meant for us."""
    known = [_variable(key) for key in KEYS.values()]
    for name, value in environment.items():
        ours = name.startswith(PREFIX) and not _SERVICE_LINK.search(name) and not _LINK_VALUE.match(value)
        if ours and name not in known:
            yield f"environment variable {name} is no setting{nearest(name, known)}"


def settings_schema() -> dict[str, Any]:
    """JSON Schema of server.yaml."""
    schema = Settings.model_json_schema()
    schema["title"] = "server.yaml"
    schema["required"] = []  # the repository may come by flag or variable
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*above, name))
        else:
            yield (*above, name)


KEYS: Mapping[str, tuple[str, ...]] = {"_".join(key): key for key in _keys(Settings)}
"""Every setting: flat name → where it stands in the file."""

_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


def _variable(key: KeyPath) -> str:
    return PREFIX + "_".join(map(str, key)).upper()


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[KeyPath, str, object]]:
    """Settings in the environment. An empty variable is one that isn't set; so is one that Kubernetes made for a service of ours
    (a service named tidegate-http gives TIDEGATE_HTTP_PORT=tcp://…)."""
    for key in KEYS.values():
        name = _variable(key)
        value = environment.get(name, "")
        if value and not _LINK_VALUE.match(value):
            yield key, name, value


def _from_flags(flags: Mapping[str, object], above: KeyPath) -> Iterator[tuple[KeyPath, str, object]]:
    for flat, value in flags.items():
        name = "_".join(map(str, (*above, flat)))
        if isinstance(value, Mapping):
            yield from _from_flags(value, (*above, flat))
        elif value is not None:
            if name not in KEYS:
                raise ConfigError(f"flag {name!r} is no setting{nearest(name, KEYS)}")
            yield KEYS[name], f"--{name.replace('_', '-')}", value


def _put(values: dict[str, Any], key: KeyPath, value: object, document: Document) -> None:
    """Set `key`, making sections on its way; the document's own are copied, not changed."""
    at: dict[str, Any] = values
    for part in key[:-1]:
        section = at.get(str(part)) or {}
        if not isinstance(section, dict):
            raise document.error(key[:-1], f"expected settings such as {key[-1]}, got {str(section)[:64]!r}")
        at[str(part)] = at = dict(section)
    at[str(key[-1])] = value


def _message(key: KeyPath, text: str, origins: Mapping[KeyPath, str], document: Document | None) -> str:
    origin = next((name for given, name in origins.items() if given[: len(key)] == key), None) if key else None
    if origin:
        return f"{origin}: {text}"
    if key == ("repository",) and text == "must be given":
        text = "must be given: --repository DIR, TIDEGATE_REPOSITORY, or `repository: DIR` in server.yaml"
    if document is not None:
        return str(document.error(key, text))
    return ": ".join(filter(None, [".".join(map(str, key)), text]))
