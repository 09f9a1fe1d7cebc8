"""Who may do what. Every edge asks here before it acts: which principal is this, and may it do that.

The table is `Operation`: each operation of each edge and its class. A principal holds the classes that it was granted; anonymous ones
infer and read, and do the rest only where the server is bound to loopback.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.config import Settings
from server.errors import ConfigError, Denied, Unauthenticated
from server.messages import Principal

INFER, READ, CONTROL, DEBUG, TENANT = "infer", "read", "control", "debug", "tenant"
CLASSES: Mapping[str, str] = {
    INFER: "ask a model",
    READ: "health and metadata",
    CONTROL: "change what is served",
    DEBUG: "see others' requests and the server's inside",
    TENANT: "say for which tenant it asks (`x-tidegate-tenant`)",
}
ANONYMOUS = Principal("anonymous", "anonymous", frozenset((INFER, READ)))
"""Whoever shows no token, on a server that the network can reach."""

MAX_FILE = 1 << 20
MAX_TOKEN = 4096
OTHERS = stat.S_IRWXO | stat.S_IWGRP


class Operation(Enum):
    """What an edge can be asked to do: (its class, what it is)."""

    def __init__(self, grant: str, what: str) -> None:
        self.grant = grant
        self.what = what

    INFER = (INFER, "run a model")
    HEALTH = (READ, "liveness and readiness of the server")
    METADATA = (READ, "name, version and extensions of the server")
    MODEL_READY = (READ, "readiness of a model")
    MODEL_METADATA = (READ, "inputs, outputs and versions of a model")
    MODEL_CONFIG = (READ, "configuration of a model")
    MODEL_STATISTICS = (READ, "counts and times of a model")
    MANIFEST = (READ, "what the exporter proved about a model")
    REPOSITORY_INDEX = (READ, "models of the repository and their states")
    API_DOCUMENT = (READ, "OpenAPI document and its page")
    MODEL_LOAD = (CONTROL, "load or reload a model")
    MODEL_UNLOAD = (CONTROL, "unload a model")
    SETTINGS = (CONTROL, "see and change log and trace settings")
    PRECISION = (CONTROL, "change the precision of a model")
    ADMISSION = (CONTROL, "shed lower priorities of a model for a while")
    ROUTING = (CONTROL, "change weights, canaries and experiments")
    SHARED_MEMORY = (CONTROL, "register, use and unregister regions of shared memory")
    EXPLAIN = (DEBUG, "how a request was batched, routed and run")
    BATCHER = (DEBUG, "what the batcher learned about a model")
    RECORDING = (DEBUG, "recorded arrivals and tensors")
    INCIDENT = (DEBUG, "the last arrivals, batches, lane and routing events")
    EVENTS = (DEBUG, "what was changed, by whom and why")
    NAME_TENANT = (TENANT, "be believed about the tenant of a request")


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the token file: whose token, as its SHA-256, may do what."""

    digest: bytes
    principal: Principal


class Gate:
    """Answers from what was settled at the start; no I/O."""

    def __init__(self, tokens: tuple[Token, ...] | None, *, loopback: bool, control: bool) -> None:
        """`tokens` None: there's no token file. `loopback`: only this machine can connect. `control`: models can be changed.

        Raises ConfigError for a server that anyone on the network could change.
        """
        if control and not loopback and not tokens:
            raise ConfigError(
                "model_control is explicit and the server isn't bound to loopback, so anyone on the network could change its models: "
                "give admin.token_file (docs/security.md), or --host 127.0.0.1, or --model-control none"
            )
        self._has_tokens = tokens is not None
        self._by_prefix: dict[bytes, list[Token]] = {}
        for token in tokens or ():
            self._by_prefix.setdefault(token.digest[:4], []).append(token)
        self._anonymous = Principal("anonymous", "anonymous", frozenset(CLASSES)) if loopback else ANONYMOUS

    @classmethod
    def from_settings(cls, settings: Settings) -> Gate:
        """Raises ConfigError: the token file can't be used, or the server would be open to anyone's changes."""
        file = settings.admin.token_file
        if settings.admin.port is not None and file is None and not is_loopback(settings.host):
            raise ConfigError(
                "admin.port is set and the server isn't bound to loopback, but without tokens nobody could use it: "
                "give admin.token_file (docs/security.md), or --host 127.0.0.1"
            )
        return cls(
            read_tokens(file) if file else None,
            loopback=is_loopback(settings.host),
            control=settings.model_control == "explicit",
        )

    def principal(self, authorization: str | None, certificate: str | None = None) -> Principal:
        """Who sends this Authorization header, or shows a certificate with this subject. Raises Unauthenticated for a token that isn't
        known.

        Without a token file the header isn't ours (a proxy's, a mesh's) and isn't looked at. A certificate gives a request a name, and
        lets it do what anonymous ones may.
        """
        if authorization is None or not self._has_tokens:
            return Principal(certificate, "certificate", self._anonymous.grants) if certificate else self._anonymous
        scheme, _, secret = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Unauthenticated(f"expected 'Authorization: Bearer TOKEN', got the scheme {scheme[:16]!r}")
        if len(secret) <= MAX_TOKEN:
            digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
            for token in self._by_prefix.get(digest[:4], ()):
                if hmac.compare_digest(token.digest, digest):
                    return token.principal
        raise Unauthenticated("this bearer token isn't one of admin.token_file")

    def tenant(self, principal: Principal, named: str | None) -> str:
        """For whom `principal` asks: whom it names, where it may be believed; else itself, "" for an anonymous one. What isn't believed
        is passed over, not refused: proxies hand on whatever headers they get."""
        if named and TENANT in principal.grants:
            return named
        return "" if principal.kind == "anonymous" else principal.name

    def check(self, principal: Principal, operation: Operation) -> None:
        """Returns if `principal` may do `operation`. Raises Unauthenticated where a token could help, else Denied; both say what's
        needed."""
        if operation.grant in principal.grants:
            return
        needed = f"{operation.what}: needs the class '{operation.grant}'"
        if principal.kind == "token":
            raise Denied(f"{needed}, which {principal.name!r} doesn't have; it has {', '.join(sorted(principal.grants)) or 'none'}")
        if self._has_tokens:
            raise Unauthenticated(f"{needed}; send 'Authorization: Bearer TOKEN' with a token that has it")
        raise Denied(f"{needed}, and this server has no tokens: start it with admin.token_file, or bound to 127.0.0.1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`. A name other than localhost may resolve to anything: no."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


def read_tokens(file: Path) -> tuple[Token, ...]:
    """The tokens of a file with lines `name:sha256 as hex:class,class`; # begins a comment.

    Raises ConfigError with the line. A file that other users may read or change isn't used.
    """
    if file.exists() and not file.is_file():
        raise ConfigError(f"admin.token_file: {file}: not a regular file")
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            content = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"admin.token_file: {file}: can't be read: {error.strerror}") from error
    if mode & OTHERS:
        raise ConfigError(f"admin.token_file: {file}: mode {mode:04o} lets others at it; expected 0600 or 0640: chmod 600 {file}")
    if len(content) > MAX_FILE:
        raise ConfigError(f"admin.token_file: {file}: larger than {MAX_FILE} bytes")
    return parse_tokens(content.decode("utf-8", "replace"), f"admin.token_file: {file}")


def parse_tokens(content: str, where: str) -> tuple[Token, ...]:
    """The tokens of a file's content. Messages begin with `where` and the line's number, and never repeat the line: it may hold a
    token where its hash should be."""
    tokens: dict[str, Token] = {}
    for number, line in enumerate(content.splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                token = _token(text)
            except ValueError as error:
                raise ConfigError(f"{where}:{number}: {error}") from None
            if token.principal.name in tokens:
                raise ConfigError(f"{where}:{number}: this name is given twice")
            tokens[token.principal.name] = token
    return tuple(tokens.values())


def _token(line: str) -> Token:
    name, digest, classes = map(str.strip, line.split(":")) if line.count(":") == 2 else ("", "", "")
    grants = frozenset(part.strip() for part in classes.split(",") if part.strip())
    if not _NAME.fullmatch(name) or name == ANONYMOUS.name:
        raise ValueError("expected name:sha256:classes, with a name of letters, digits and _.@- (and not 'anonymous')")
    if not _DIGEST.fullmatch(digest):
        raise ValueError("expected the SHA-256 of the token as 64 hex digits (docs/security.md has the command)")
    if not grants or grants - CLASSES.keys():
        raise ValueError(f"expected classes out of {', '.join(CLASSES)}, got {', '.join(sorted(grants - CLASSES.keys())) or 'none'}")
    return Token(bytes.fromhex(digest), Principal(name, "token", grants))
