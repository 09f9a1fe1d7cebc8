"""Scraping: what a target may send, what is refused, and that each failure is a reading with its reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from monitor.alerts import labels_of
from monitor.rules.settings import Secret, Sources
from monitor.series.window import Reading
from monitor.sources import addresses
from monitor.sources.addresses import Refused, places
from monitor.sources.scrape import Scraper
from tests.monitor.pages_served import reply, serving


async def scraped(target: str, **settings: object) -> Reading:
    scraper = Scraper("tidegate", [target], Sources.model_validate({"timeout": 1, **settings}))
    try:
        (reading,) = await scraper.read()
        return reading
    finally:
        await scraper.close()


async def test_a_page() -> None:
    async with serving(reply('x{model="a"} 5\n')) as served:
        reading = await scraped(f"127.0.0.1:{served.port}")
    assert reading.samples == [("x", labels_of({"model": "a", "job": "tidegate", "instance": f"127.0.0.1:{served.port}"}), 5.0)]
    assert served.requests[0].path == "/metrics"
    assert served.requests[0].headers["accept-encoding"] == "identity"


async def test_a_url_with_a_path_and_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    async with serving(reply("x 5\n")) as served:
        reading = await scraped(f"http://localhost:{served.port}/other?a=b", token=Secret(file=tmp_path / "token"))
    assert reading.ok
    assert (served.requests[0].path, served.requests[0].headers["authorization"]) == ("/other?a=b", "Bearer s3cret")
    assert reading.instance == f"localhost:{served.port}"


ANSWERS = {
    "an error": (reply(status="500 Oops"), "answered 500"),
    "a redirect": (reply(status="302 Found", headers="location: http://169.254.169.254/\r\n"), "answered 302"),
    "too large a page": (reply("x 1\n" * 1000), "sent more than 1024 bytes"),
    "a page that never ends": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x 1\n" * 100_000, "sent more than 1024 bytes"),
    "a compressed page": (reply(gzip.compress(b"x 1\n"), headers="content-encoding: gzip\r\n"), "sent a compressed page"),
    "silence": (b"", "no answer within 0.2s"),
    "no HTTP": (b"hello\r\n\r\n", ""),
    "no page": (reply("<html>\n"), "no line is in Prometheus' text format"),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_a_target_that_answers_wrong(case: str) -> None:
    answer, message = ANSWERS[case]
    async with serving(answer) as served:
        reading = await scraped(f"127.0.0.1:{served.port}", max_bytes=1024, timeout=0.2)
    assert not reading.ok
    assert message in reading.error


async def test_a_target_that_is_not_there() -> None:
    async with serving(b"") as served:
        port = served.port
    assert not (await scraped(f"127.0.0.1:{port}")).ok


@pytest.mark.parametrize(
    "target", ["169.254.169.254:80", "http://[fe80::1]:80", "[fd00:ec2::254]:80", "http://[::ffff:169.254.169.254]", "0.0.0.0:80"]
)
async def test_link_local_and_metadata_addresses_are_not_asked(target: str) -> None:
    assert "aren't asked" in (await scraped(target)).error


@pytest.mark.parametrize("target", ["", "ftp://a", "http://user:pass@a", "http://", "a b:5", "a:99999"])
async def test_what_is_no_target(target: str) -> None:
    assert "expected HOST:PORT" in (await scraped(target)).error


async def test_a_name_that_nobody_has() -> None:
    assert "can't be found" in (await scraped("no-such-host.invalid:80")).error


async def test_every_address_of_a_headless_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(host: str, port: int) -> list[str]:
        return ["10.0.0.1", "10.0.0.2", "169.254.0.9"]

    monkeypatch.setattr(addresses, "_resolved", two)
    found = await places("dns://tidegate:8002", allow_link_local=False)
    assert [place.instance for place in found] == ["10.0.0.1:8002", "10.0.0.2:8002"]
    assert {place.host for place in found} == {"tidegate:8002"}
    with pytest.raises(Refused):
        await places("dns://", allow_link_local=False)
