"""Which addresses may be asked: names become addresses here, once, and what is asked is the address that was looked at."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

METADATA = frozenset({"169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"})
"""Where clouds answer for the machine's credentials."""


class Refused(Exception):
    """A target that mustn't be asked, or can't be found, and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """One address to ask: `instance` is what the target is called, `host` what the request says, `url` what is connected to."""

    instance: str
    url: str
    host: str
    name: str


def target_url(target: str, path: str = "/metrics") -> SplitResult:
    """HOST:PORT, a URL, or dns://NAME:PORT as a URL with a path. Raises Refused for what is none."""
    text = target if "://" in target else f"http://{target}"
    try:
        url = urlsplit(text)
        known = url.scheme in ("http", "https", "dns") and bool(url.hostname) and url.port != 0
    except ValueError:
        known = False
    if not known or url.username or re.search(r"\s", target):
        raise Refused(f"expected HOST:PORT, a URL or dns://NAME:PORT, got {target[:80]!r}")
    return url._replace(path=url.path if url.path not in ("", "/") else path)


async def places(target: str, *, allow_link_local: bool) -> list[Place]:
    """The addresses of a target: the first that may be asked, or for dns:// every one. Raises Refused."""
    url = target_url(target)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    every = url.scheme == "dns"
    scheme = "http" if every else url.scheme
    found = await _resolved(host, port)
    allowed = [address for address in found if allow_link_local or _may_be_asked(address)]
    if not allowed:
        raise Refused(f"{host} is {', '.join(found)}: link-local and metadata addresses aren't asked (sources.allow_link_local)")
    rest = url.path + (f"?{url.query}" if url.query else "")
    name = f"[{host}]" if ":" in host else host
    return [
        Place(
            instance=f"{_bracketed(address)}:{port}" if every else f"{name}:{port}",
            url=f"{scheme}://{_bracketed(address)}:{port}{rest}",
            host=f"{name}:{port}",
            name=host,
        )
        for address in (allowed if every else allowed[:1])
    ]


async def _resolved(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"{host} can't be found: {error}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _may_be_asked(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    plain = (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
    return not (plain.is_link_local or plain.is_multicast or plain.is_unspecified or str(plain) in METADATA)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
