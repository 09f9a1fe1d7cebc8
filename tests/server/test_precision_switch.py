"""A model's precision is switched while it serves: nothing fails, each answer is one precision's own, what can't serve changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from server.app import App
from server.errors import Superseded
from tests.server.models import linear_model, linear_weights, place_with_manifest, variant, write_manifest
from tests.server.running import Answer, http, infer_json, running, wire

PRECISIONS = {"fp32": 0, "fp16": 1, "int8": 2}
"""Each of them is a model of its own (by its seed), so that an answer says which it comes from."""
PATH = "/admin/models/net/precision"
ROWS = np.random.default_rng(7).normal(size=(3, 8)).astype(np.float32)


def place_net(root: Path, yaml: str = "") -> Path:
    folder = root / "net" / "1"
    files = {name: linear_model(folder / f"model.{name}.onnx", seed=seed) for name, seed in PRECISIONS.items()}
    write_manifest(folder, "net", [variant(file, name, target="cpu") for name, file in files.items()])
    (root / "net" / "model.yaml").write_text(yaml)
    return root


def answers_of(precision: str) -> np.ndarray:
    weight, bias = linear_weights(8, 4, PRECISIONS[precision])
    return ROWS @ weight + bias


def told(answer: Answer) -> str:
    """Which precision an answer comes from, row by row the same; "" for none of them."""
    assert answer.status == 200, answer.body
    got = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(3, 4)
    return next((name for name in PRECISIONS if np.allclose(got, answers_of(name), atol=1e-5)), "")


async def ask_admin(app: App, method: str, said: object = None) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(http(PATH, b"" if said is None else json.dumps(said).encode(), method))


async def switch(app: App, precision: str) -> Answer:
    return await ask_admin(app, "PUT", {"active": precision})


@pytest.mark.parametrize("kind", ["thread", "process", "inline"])
async def test_under_load_nothing_fails_and_nothing_mixes(tmp_path: Path, kind: str) -> None:
    place_net(tmp_path, f"lanes: {{kind: {kind}, count: 1, threads: 1}}")
    seen: list[str] = []
    done = asyncio.Event()

    async def client(app: App) -> None:
        async with wire(app) as connection:
            while not done.is_set():
                seen.append(told(await connection.ask(infer_json("net", ROWS))))

    async with running(tmp_path) as app:
        clients = [asyncio.create_task(client(app)) for _ in range(4)]
        for precision in ("int8", "fp16", "fp32", "int8"):
            answer = await switch(app, precision)
            assert answer.status == 200, answer.body
            said = answer.json()["versions"][0]
            assert (said["version"], said["active"], said["available"]) == ("1", precision, list(PRECISIONS))
            before = len(seen)
            async with asyncio.timeout(20):
                while len(seen) < before + 20:
                    await asyncio.sleep(0.001)
            assert sum(name != precision for name in seen[before:]) <= 4  # that were under way: the old one's
        done.set()
        await asyncio.gather(*clients)
    assert set(seen) == set(PRECISIONS)


async def test_what_was_chosen_holds_until_it_is_cleared(tmp_path: Path) -> None:
    place_net(tmp_path, "precision: {active: fp16}")
    async with running(tmp_path, model_control="explicit", load_model=["net"]) as app, wire(app) as connection:
        assert (await ask_admin(app, "GET")).json()["chosen"] is None
        assert told(await connection.ask(infer_json("net", ROWS))) == "fp16"
        assert (await switch(app, "int8")).json()["chosen"] == "int8"
        assert (await connection.ask(http("/v2/repository/models/net/load", b"{}"))).status == 200
        assert told(await connection.ask(infer_json("net", ROWS))) == "int8"
        cleared = (await ask_admin(app, "DELETE")).json()
        assert (cleared["chosen"], cleared["versions"][0]["active"]) == (None, "fp16")
        assert told(await connection.ask(infer_json("net", ROWS))) == "fp16"


async def test_a_variant_that_cannot_serve_changes_nothing(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app, wire(app) as connection:
        (tmp_path / "net" / "1" / "model.int8.onnx").write_bytes(b"damaged since")
        answer = await switch(app, "int8")
        assert answer.status == 400
        assert answer.json()["error"].startswith("model 'net' still serves in fp32: it can't in int8: version 1: net/1/model.int8.onnx: ")
        assert told(await connection.ask(infer_json("net", ROWS))) == "fp32"
        said = (await ask_admin(app, "GET")).json()
        assert (said["chosen"], said["versions"][0]["active"]) == (None, "fp32")
        assert [(row.state, row.reason) for row in app.control.index()] == [("READY", "")]
        assert (await switch(app, "fp16")).status == 200


async def test_of_two_versions_none_switches_where_one_cannot(tmp_path: Path) -> None:
    place_net(tmp_path, "versions: {policy: all}")
    place_with_manifest(tmp_path, "net", ["fp32", "int8"], version="2")
    async with running(tmp_path) as app:
        (tmp_path / "net" / "2" / "model.int8.onnx").write_bytes(b"")
        assert (await switch(app, "int8")).status == 400
        assert [row.active for row in app.control.precisions.rows("net")] == ["fp32", "fp32"]
        assert "version 2 has no precision 'fp16'" in (await switch(app, "fp16")).json()["error"]


async def test_the_last_of_several_switches_wins(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app:
        made = await asyncio.gather(*(app.control.switch("net", name) for name in ("fp16", "int8", "fp16")), return_exceptions=True)
        assert [type(one) for one in made[:2]].count(Superseded) >= 1
        assert made[2] is None
        assert app.control.precisions.rows("net")[0].active == "fp16"


async def test_the_edge_answers_409_to_one_that_is_superseded(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app:
        answers = await asyncio.gather(*(switch(app, name) for name in ("int8", "fp16", "int8", "fp16")))
        assert {answer.status for answer in answers} == {200, 409}
        assert "another switch was asked for before this one" in next(one for one in answers if one.status == 409).json()["error"]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({}, 'expected {"active": PRECISION}, got {}'),
        ({"active": 16}, 'expected {"active": PRECISION}'),
        ({"active": "int8", "model": "net"}, 'expected {"active": PRECISION}'),
        ([], "expected a JSON object"),
        ({"active": "fp61"}, "has no precision 'fp61', but fp32, fp16, int8; did you mean 'fp16'?; `tidegate export"),
        ({"active": "bf16"}, "has no precision 'bf16'"),
    ],
    ids=str,
)
async def test_wishes_that_make_no_sense(tmp_path: Path, said: object, text: str) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app:
        answer = await ask_admin(app, "PUT", said)
        assert answer.status == 400
        assert text in answer.json()["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_model_that_does_not_serve(tmp_path: Path, method: str) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    async with running(tmp_path) as app:
        answer = await ask_admin(app, method, {"active": "int8"} if method == "PUT" else None)
        assert (answer.status, answer.json()) == (404, {"error": "no version of a model 'net' serves"})


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_it_is_for_those_who_may_control(tmp_path: Path, method: str) -> None:
    place_net(tmp_path / "models")
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{name}\n" for name in ("debug", "control")))
    tokens.chmod(0o600)
    async with running(tmp_path / "models", host="0.0.0.0", admin={"token_file": tokens}) as app, httpx.AsyncClient() as plain:
        url, wish = f"http://127.0.0.1:{app.http.port}{PATH}", {"active": "int8"} if method == "PUT" else None
        assert (await plain.request(method, url, json=wish)).status_code == 401
        assert (await plain.request(method, url, json=wish, headers={"authorization": "Bearer debug"})).status_code == 403
        assert (await plain.request(method, url, json=wish, headers={"authorization": "Bearer control"})).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        (("show", "net"), lambda out: all(name in out for name in PRECISIONS) and "as the model's own configuration says" in out),
        (("set", "net", "int8"), lambda out: "chosen by an operator: int8" in out),
        (("set", "net", "int8", "--json"), lambda out: json.loads(out)["versions"][0]["active"] == "int8"),
        (("clear", "net"), lambda out: "as the model's own configuration says" in out),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_the_command(tmp_path: Path, arguments: tuple[str, ...], check: Callable[[str], bool]) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app:
        command = (sys.executable, "-m", "tidegate", "precision", *arguments, "--url", f"http://{app.addresses.http}")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert check(out.decode())


async def test_the_command_says_what_the_server_says(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app:
        command = (sys.executable, "-m", "tidegate", "precision", "set", "net", "fp8", "--url", f"http://{app.addresses.http}")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"has no precision 'fp8'" in err
