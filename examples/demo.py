"""The demo: export three trained models, serve them, ask them, keep serving. `python -m examples.demo [--no-questions]`.

With DEMO_EXIT=1 it stops once the questions are answered. Exit status: 0 all well, 1 a step failed or an answer is wrong, 2 wrong
usage, 130 interrupted before the server was up.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import tritonclient.http as client
from rich.console import Console

from examples.burst import burst
from examples.console import heading, make_console, say, step
from examples.fetch import FetchError
from examples.models import digits
from examples.prepare import ROOT, TIDEGATE, PrepareError, prepare
from examples.questions import Asker, WrongAnswerError, ask_digits, ask_photos, ask_sentences
from examples.serving import ServerError, ServerProcess, free_port

LOG = ROOT / "build" / "demo-server.log"
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002


def main(arguments: list[str]) -> int:
    """The command. Its exit status."""
    unknown = [argument for argument in arguments if argument != "--no-questions"]
    if unknown:
        print(f"error: {unknown[0]}: the only flag is --no-questions", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = make_console()
    try:
        heading(console, "Three trained models")
        repository = prepare(console)
        heading(console, "A server")
        return serve(console, repository, questions="--no-questions" not in arguments)
    except KeyboardInterrupt:
        return 130
    except (PrepareError, FetchError, ServerError, WrongAnswerError, client.InferenceServerException, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def serve(console: Console, repository: Path, questions: bool) -> int:
    """Serve the repository, ask if `questions`, and keep serving until Ctrl-C. The server is stopped in order, whatever happens."""
    server = ServerProcess(_command(console, repository), LOG)
    console.print(f"- {' '.join(['tidegate', *server.command[1:]])}", soft_wrap=True, markup=False)
    with step(console, "start the server and warm the models up"):
        ready = server.start()
    try:
        _check_ready(console, ready)
        if questions:
            _ask(console, ready["http"], ready["metrics"])
        if os.environ.get("DEMO_EXIT") != "1":
            _invite(console, ready)
            raise ServerError(f"the server ended by itself with status {server.wait()}: see {LOG}")
    except KeyboardInterrupt:
        console.print()
    finally:
        status = server.stop()
    console.print(
        f"The server stopped in order (exit status {status})." if not status else f"The server's exit status was {status}: see {LOG}"
    )
    return 1 if status else 0


def _command(console: Console, repository: Path) -> list[str]:
    command = [TIDEGATE, "serve", "--repository", str(repository.relative_to(ROOT) if Path.cwd() == ROOT else repository)]
    for flag, wanted in (("--http-port", HTTP_PORT), ("--grpc-port", GRPC_PORT), ("--metrics-port", METRICS_PORT)):
        port = free_port(wanted)
        if not port:
            say(console, f"- port {wanted} is taken: any free one is used instead")
        command += [flag, str(port)]
    return command


def _check_ready(console: Console, ready: dict[str, Any]) -> None:
    states = ready["models"]
    say(console, f"- serving on {ready['http']}: {', '.join(f'{name} {state}' for name, state in sorted(states.items()))}")
    lacking = sorted(name for name, state in states.items() if state != "READY")
    if lacking or not states:
        raise ServerError(f"not ready: {', '.join(lacking) or 'no model at all'}: the reason is in {LOG}")


def _ask(console: Console, http: str, metrics: str) -> None:
    with client.InferenceServerClient(http) as triton:
        asker = Asker(triton)
        heading(console, "Sentences, and how alike they are (MiniLM)")
        ask_sentences(console, asker)
        heading(console, "Photos, and what is on them (MobileNetV2)")
        ask_photos(console, asker)
        heading(console, "Handwritten digits (the network trained above)")
        ask_digits(console, asker)
    heading(console, "A burst, batched as it comes")
    burst(console, http, metrics)


def _invite(console: Console, ready: dict[str, Any]) -> None:
    held_out = digits.data()
    pixels = [int(value) for value in held_out.test_images[0].ravel()]
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels}]}
    heading(console, f"Serving on http://{ready['http']} until Ctrl-C")
    say(console, f"API: http://{ready['http']}/docs   metrics: http://{ready['metrics']}/metrics   log: {LOG.relative_to(ROOT)}")
    say(console, f"Ask what this digit is (a {held_out.test_labels[0]}; the largest of the ten logits says so):")
    curl = f"curl -s http://{ready['http']}/v2/models/digits/infer -d '{json.dumps(body, separators=(',', ':'))}'"
    console.print(curl, soft_wrap=True, markup=False)
    sys.stdout.flush()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
