"""Process lanes behind the real server: killed under load, and asked what kills them. Figures come from its clients and its log."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import poison, wire
from benchmarks.harness import BUILD, ROOT, TIDEGATE, BenchError, Load, Report, Shot, Target, background_load, write_shots
from examples.serving import ServerProcess, server_environment

KILLS, CONNECTIONS = 10, 8
CALM = 3.0  # seconds between kills, and before the first
POISON_REQUESTS, CLIENTS = 1000, 16
PROCESS_LANES = "lanes: {kind: process, count: 2, threads: 1}\n"


def repository(folder: Path, models: Path) -> Path:
    """minilm as it was exported, in two process lanes, and a model that some inputs kill."""
    for name, text in (("minilm", PROCESS_LANES), ("poisoned", f"backend: {poison.NAME}\n{PROCESS_LANES}")):
        entry = folder / name
        entry.mkdir(parents=True, exist_ok=True)
        (entry / "model.yaml").write_text(text)
    version = folder / "minilm" / "1"
    if not version.exists():
        version.mkdir()
        for file in (models / "minilm" / "1").iterdir():
            (version / file.name).hardlink_to(file.resolve())
    poison.write_model(folder / "poisoned" / "1" / "model.onnx")
    poison.declare(BUILD / "site")
    return folder


def server(folder: Path) -> ServerProcess:
    """Over that repository, with the poisoned model's backend on its path."""
    command = [TIDEGATE, "serve", "--repository", str(folder), "--http-port", "0", "--metrics-port", "0"]
    path = os.pathsep.join([str(BUILD / "site"), str(ROOT)])
    return ServerProcess(command, BUILD / "lanes.log", {**server_environment(), "PYTHONPATH": path, "TIDEGATE_LOG_FORMAT": "json"})


def killed_under_load(report: Report, running: ServerProcess, load_seconds: float) -> None:
    """kill -9 of a process lane, KILLS times while clients ask: no request may fail, and the lane must be back soon."""
    address = running.ready["http"]
    shots = write_shots("lanes-minilm", [Shot(wire.binary_request(address, "minilm", tokens(1, 16 + length))) for length in range(24)])
    with background_load(shots, address, Load(CONNECTIONS, KILLS * (CALM + 1.0))) as load:
        for kill in range(KILLS):
            time.sleep(CALM)
            before = len(_events(running.log, "lane_restarted", "minilm"))
            os.kill(random.Random(kill).choice(_lanes(running, "minilm")), signal.SIGKILL)
            _wait_until(running.log, before + 1)
        measured = load.result()  # raises where a single answer was wrong or missing
    recovered = [float(event["after_s"]) for event in _events(running.log, "lane_restarted", "minilm")]
    report.details["kill -9"] = {"recovery s": recovered, "load of the model s": load_seconds, "requests/s": measured.rate}
    report.targets.append(
        Target("failed requests in 10 kills of a process lane", 0, 0, at_most=True, note=f"{measured.rate:.0f} requests/s")
    )
    note = f"longest of {KILLS}; opening the lane alone takes {load_seconds:.2f} s"
    report.targets.append(Target("recovery beyond the model's load, s", max(recovered) - load_seconds, 2.0, at_most=True, note=note))


def poisoned(report: Report, running: ServerProcess) -> None:
    """One request in a thousand kills its process: it alone may fail."""
    address = running.ready["http"]
    requests = [wire.binary_request(address, "poisoned", {"x": poison.row(number)}) for number in range(POISON_REQUESTS)]
    bad = POISON_REQUESTS // 2
    requests[bad] = wire.binary_request(address, "poisoned", {"x": poison.row(poison.KILLS)})
    started = time.monotonic()
    answers = _ask(address, requests)
    wrong = [number for number, answer in enumerate(answers) if number != bad and not _is_right(answer, number)]
    text = answers[bad].body.decode(errors="replace")
    if answers[bad].status != 500 or "killed by this input" not in text:
        raise BenchError(f"the request that kills got status {answers[bad].status}: {text[:200]}")
    report.details["poison"] = {"failed": wrong, "seconds": time.monotonic() - started, "answer": text}
    note = f"1 in {POISON_REQUESTS} kills; all done in {time.monotonic() - started:.1f} s"
    report.targets.append(Target("others that failed beside a poison request", len(wrong), 0, at_most=True, note=note))


def tokens(rows: int, length: int) -> dict[str, NDArray[Any]]:
    """Inputs of MiniLM, all of one length."""
    ids = np.full((rows, length), 2000, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _is_right(answer: wire.Answer, number: int) -> bool:
    return answer.status == 200 and np.array_equal(answer.array("y"), poison.row(number))


def _ask(address: str, requests: Sequence[bytes]) -> list[wire.Answer]:
    """All requests over CLIENTS connections, each asking one after the other."""
    answers: list[wire.Answer | None] = [None] * len(requests)

    def client(first: int) -> None:
        for number, answer in zip(
            range(first, len(requests), CLIENTS), wire.ask_one_by_one(address, requests[first::CLIENTS]), strict=True
        ):
            answers[number] = answer

    threads = [threading.Thread(target=client, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(requests):
        raise BenchError(f"{len(requests) - len(found)} of {len(requests)} requests got no answer")
    return found


def _lanes(running: ServerProcess, model: str) -> list[int]:
    """The lanes' processes, which bear the model's name."""
    return [pid for pid in _children(running.pid) if _text(pid, "comm").strip() == f"lane {model}"]


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def _text(pid: int, file: str) -> str:
    return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")


def _events(log: Path, event: str, model: str) -> list[dict[str, Any]]:
    lines = (line for line in log.read_text().splitlines() if f'"{event}"' in line)
    return [found for line in lines if (found := json.loads(line))["event"] == event and found["model"] == model]


def _wait_until(log: Path, restarts: int, patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while len(_events(log, "lane_restarted", "minilm")) < restarts:
        if time.monotonic() > deadline:
            raise BenchError(f"a killed lane wasn't back within {patience:g} s; see {log}")
        time.sleep(0.05)
