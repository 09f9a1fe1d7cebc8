"""What model.yaml says about queue and batching, over a real server: deadlines, priorities, tenants, bounds, and why batches are closed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engine.admission import length_at, policy_of
from server.engine.batcher import BatchPolicy
from server.engine.decide.turns import Tenant
from server.padding import NO_PADDING, PadAxis, Padding
from server.repository.model_config import ModelConfig
from server.tensors import TensorSpec
from tests.server.models import identity_model, place, slow_model
from tests.server.running import Answer, infer_binary, infer_json, running
from tests.server.test_explain import metrics
from tests.server.test_ragged import ask, together

ROW = np.ones((1, 16), np.float32)
SLOW_ROW = np.ones((1, 256), np.float32)
ONE_LANE = "lanes: {count: 1, kind: thread}"


def slow(**parameters: Any) -> bytes:
    """A request for slow_model that is explained."""
    return infer_json("m", SLOW_ROW, parameters={"explain": True, **parameters})


def reasons(answers: Sequence[Answer]) -> list[str]:
    return [answer.json()["parameters"]["close_reason"] for answer in answers]


async def test_the_models_timeout_is_for_requests_that_bring_none(tmp_path: Path) -> None:
    place(tmp_path, "m", identity_model, yaml="queue: {timeout: 1ns}")
    row = np.ones((1, 16), np.float32)
    async with running(tmp_path) as app:
        answers = [await ask(app, infer_json("m", row, parameters=said)) for said in ({}, {"timeout": 0}, {"timeout": 60_000_000})]
    assert [answer.status for answer in answers] == [503, 503, 200]
    assert answers[0].headers["retry-after"]


@pytest.mark.parametrize(("on_late", "status"), [("serve", 200), ("reject", 503)])
async def test_the_objective_is_a_deadline_where_late_answers_are_rejected(tmp_path: Path, on_late: str, status: int) -> None:
    place(tmp_path, "m", identity_model, yaml=f"batching: {{latency_objective: 1ns}}\nqueue: {{on_late: {on_late}}}")
    async with running(tmp_path) as app:
        assert (await ask(app, infer_json("m", np.ones((1, 16), np.float32)))).status == status


async def test_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml="queue: {max_bytes: 2KiB}\nbatching: {max_rows: 1}\nlanes: {count: 1, kind: thread}")
    row = np.ones((1, 256), np.float32)
    async with running(tmp_path) as app:
        answers = await together(app, [infer_binary("m", row)] * 12)
        later = await ask(app, infer_binary("m", row))
    refused = [answer for answer in answers if answer.status == 503]
    assert refused
    assert {answer.json()["error"] for answer in refused} == {
        "model 'm': exceeds maximum queue size of 2048 bytes (limit: queue.max_bytes)"
    }
    assert answers[0].status == later.status == 200


async def test_a_priority_out_of_range_is_refused(tmp_path: Path) -> None:
    place(tmp_path, "m", identity_model, yaml="queue: {priorities: 2}")
    async with running(tmp_path) as app:
        answers = [await ask(app, infer_json("m", np.ones((1, 16), np.float32), parameters={"priority": level})) for level in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 400]
    assert answers[3].json()["error"] == (
        "parameter 'priority' for model 'm' must be a whole number from 1 (first) to 2 (last), or 0 for the last; got 3"
    )


async def test_tenants_are_counted_as_far_as_they_may_be_believed(tmp_path: Path) -> None:
    place(tmp_path / "models", "m", identity_model, yaml="queue: {tenants: {blue: 1, user: 1}}")
    file = tmp_path / "tokens"
    lines = [
        f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{classes}" for name, classes in (("proxy", "infer,tenant"), ("user", "infer"))
    ]
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    asked = [("proxy", "blue"), ("proxy", "red"), ("user", "blue")]
    async with running(tmp_path / "models", admin={"token_file": file}) as app:
        for name, tenant in asked:
            headers = {"authorization": f"Bearer {name}", "X-Tidegate-Tenant": tenant}
            assert (await ask(app, infer_json("m", np.ones((1, 16), np.float32), headers))).status == 200
            assert (await ask(app, infer_json("m", np.ones((1, 15), np.float32), headers))).status == 400
            assert (await ask(app, infer_json("m", np.ones((1, 16), np.float32), headers, parameters={"priority": 9}))).status == 400
            assert (await ask(app, infer_json("unknown", np.ones((1, 16), np.float32), headers))).status == 404
        counted = await metrics(app, "tidegate_tenant_requests_total")
    expected = {tenant: {"success": 1.0, "refused": 2.0} for tenant in ("blue", "other", "user")}
    assert counted == {
        f'{{outcome="{outcome}",tenant="{tenant}"}}': count for tenant, by in expected.items() for outcome, count in by.items()
    }


async def test_a_tenant_over_its_quota_is_refused(tmp_path: Path) -> None:
    place(tmp_path, "m", identity_model, yaml="queue: {tenants: {a: {weight: 3, rows_per_s: 1}, b: 1}}")
    async with running(tmp_path) as app:
        answers = [await ask(app, infer_json("m", ROW, {"x-tidegate-tenant": name})) for name in "aaaabb"]
    assert [answer.status for answer in answers[-2:]] == [200, 200]
    refused = [answer for answer in answers if answer.status == 503]
    assert refused
    assert {answer.json()["error"] for answer in refused} == {"model 'm': tenant 'a' is over its quota (limit: queue.tenants.a.rows_per_s)"}


async def test_a_batch_is_held_for_more_as_long_as_max_wait(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml=f"batching: {{max_wait: 20ms, preferred_rows: [64]}}\n{ONE_LANE}")
    async with running(tmp_path) as app:
        answer = await ask(app, slow())
    assert reasons([answer]) == ["hold"]
    assert answer.json()["parameters"]["queue_us"] >= 19_000


async def test_preferred_sizes_are_kept(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml=f"batching: {{preferred_rows: [4]}}\n{ONE_LANE}")
    async with running(tmp_path) as app:
        answers = await together(app, [slow()] * 9)
    rows = [answer.json()["parameters"]["batch_rows"] for answer in answers]
    assert max(rows) == 4
    assert rows.count(4) >= 4


async def test_higher_priorities_go_first(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml=f"batching: {{max_rows: 1}}\nqueue: {{priorities: 2}}\n{ONE_LANE}")
    async with running(tmp_path) as app:
        answers = await together(app, [slow(priority=level) for level in (0, 0, 2, 1, 1)])
    waited = [answer.json()["parameters"]["queue_us"] for answer in answers]
    assert max(waited[3:]) < min(waited[1:3])


async def test_what_cannot_be_answered_in_time_is_answered_at_once(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml=f"batching: {{max_rows: 1}}\n{ONE_LANE}")
    async with running(tmp_path) as app:
        answers = await together(app, [slow(), slow(timeout=1), slow(timeout=60_000_000)])
        dropped = await metrics(app, "tidegate_dropped_total")
    assert [answer.status for answer in answers] == [200, 503, 200]
    assert answers[1].json()["error"].startswith("Request timeout expired: ")
    assert int(answers[1].headers["retry-after"]) >= 1
    assert sum(dropped.values()) == 1


def test_the_batcher_gets_what_model_yaml_says() -> None:
    batching = {"max_rows": 32, "max_wait": "5ms", "latency_objective": "50ms", "preferred_rows": [8, 32], "length_buckets": [16, 64]}
    queue = {"on_late": "reject", "priorities": 3, "tenants": {"a": 2, "b": {"rows_per_s": 5, "bytes_per_s": "1KiB"}}}
    config = ModelConfig.model_validate({"batching": batching, "queue": queue})
    assert policy_of(config, 2, batched=True) == BatchPolicy(
        max_rows=32,
        latency_objective=0.05,
        on_late="reject",
        max_wait=0.005,
        preferred_rows=(8, 32),
        length_buckets=(16, 64),
        priorities=3,
        tenants={"a": Tenant(2.0), "b": Tenant(1.0, 5.0, 1024)},
        lanes=2,
    )
    unbatched = policy_of(config, 1, batched=False)
    assert (unbatched.max_rows, unbatched.preferred_rows) == (1, ())
    assert policy_of(ModelConfig(), 1, batched=True) == BatchPolicy()


def test_the_length_that_warm_up_measured() -> None:
    ids = TensorSpec("ids", "INT64", (-1, -1), max_shape=(-1, 6))
    image = TensorSpec("image", "FP32", (-1, 3, -1, -1))
    padding = Padding({"image": (PadAxis(2, "h"), PadAxis(3, "w"))})
    assert length_at(8, (ids, image), NO_PADDING) == 1
    assert length_at(8, (ids, image), padding) == 64
    assert length_at(8, (ids,), Padding({"ids": (PadAxis(1, "n"),)})) == 6
