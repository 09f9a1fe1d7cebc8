"""Locust's users: `locust -f loadtests/locustfile.py -H http://HOST:PORT --scenario mixed`, headless or with its web page.

Users ask what a scenario's mix says; `--grpc-host HOST:PORT` is for those of gRPC. The shape follows the scenario's rate, one request a
second from each user. Beside each request's latency, an answer that tells of its run gives entries of type RUN: rows (as they are), and the
milliseconds that it waited and computed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from time import perf_counter
from typing import Any, cast

import grpc
import grpc.experimental.gevent as grpc_gevent
import httpx
import numpy as np
from locust import LoadTestShape, User, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment

from loadtests.arrivals import rate_at
from loadtests.asking import Question, facts_of, questions
from loadtests.clients.base import tenant_headers
from loadtests.clients.encoding import HEAD_LENGTH, METHODS, as_metadata, explained_by, grpc_prepared, http_prepared
from loadtests.clients.http import answer_of
from loadtests.running.plan import names_of
from loadtests.samples import RunFacts
from loadtests.scenario import Scenario, find_scenario, read_scenario
from server.protocol.proto.messages import INFERENCE

grpc_gevent.init_gevent()

PER_USER = 1.0  # requests a second
"""So that a shape in requests a second is one in users."""

TIMEOUT = 30.0


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """The scenario and the gRPC address, as flags, environment variables and fields of the web page."""
    parser.add_argument("--scenario", default="steady", env_var="TIDEGATE_SCENARIO", help="a scenario's file, or the name of a shipped one")
    parser.add_argument("--grpc-host", default="127.0.0.1:8001", env_var="TIDEGATE_GRPC", help="HOST:PORT, for users of gRPC")


def option(environment: Environment, name: str) -> str:
    """A flag's value."""
    return str(getattr(environment.parsed_options, name))


@lru_cache
def scenario_named(name: str) -> Scenario:
    """The scenario of `--scenario`."""
    return read_scenario(find_scenario(name))


class Mix:
    """The requests of a scenario, made once from what the server says of its models; `next` draws one by the mix."""

    def __init__(self, scenario: Scenario, host: str) -> None:
        self._random = np.random.default_rng(scenario.seed)
        self._explain = scenario.explain
        shares = np.asarray([asked.share for asked in scenario.mix])
        self._shares = shares / shares.sum()
        self.names = names_of(scenario.mix)
        self.headers = [tenant_headers(asked.tenant) for asked in scenario.mix]
        self._pools: list[list[Question]] = []
        with httpx.Client(base_url=host, timeout=TIMEOUT) as client:
            for kind, asked in enumerate(scenario.mix):
                place = f"/v2/models/{asked.model}" + (f"/versions/{asked.version}" if asked.version else "")
                metadata, config = (client.get(path).raise_for_status().json() for path in (place, f"{place}/config"))
                self._pools.append(questions(kind, asked, facts_of(metadata, config), self._random))

    def next(self) -> tuple[Question, bool]:
        """A request, and whether it should tell of its run."""
        pool = self._pools[self._random.choice(len(self._shares), p=self._shares)]
        return pool[self._random.integers(len(pool))], bool(self._random.random() < self._explain)


@lru_cache
def mix_of(name: str, host: str) -> Mix:
    """The requests that all users share."""
    return Mix(scenario_named(name), host)


def told(environment: Environment, name: str, run: RunFacts | None) -> None:
    """Enter what an answer told of its run."""
    if run is not None:
        for what, value in (("rows", run.batch_rows), ("queue", run.queue * 1e3), ("compute", run.compute * 1e3)):
            environment.events.request.fire(
                request_type="RUN", name=f"{name} {what}", response_time=value, response_length=0, exception=None, context={}
            )


class HttpUser(FastHttpUser):
    """Asks over HTTP, tensors in binary. `format` json in a subclass."""

    abstract = True
    wait_time = constant_throughput(PER_USER)
    binary = True

    @task
    def infer(self) -> None:
        """One request of the mix."""
        mix = mix_of(option(self.environment, "scenario"), self.host)
        question, explain = mix.next()
        name = mix.names[question.kind]
        prepared = http_prepared(question, explain, mix.headers[question.kind], self.binary)
        headers = {**prepared.headers, "Accept-Encoding": "identity"}
        body = cast(Any, prepared.body)  # locust's types know text alone
        with self.client.post(f"/{prepared.path}", data=body, headers=headers, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {(response.text or '')[:160]}")
                return
            if explain:
                answer = answer_of(response.content, response.headers.get(HEAD_LENGTH))
                if answer.why:
                    response.failure(answer.why)
                told(self.environment, name, answer.run)


class BinaryUser(HttpUser):
    """HTTP, binary tensors."""


class JsonUser(HttpUser):
    """HTTP, JSON."""

    binary = False


class GrpcUser(User):
    """Asks over gRPC, a call a request."""

    wait_time = constant_throughput(PER_USER)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._channel = grpc.insecure_channel(option(environment, "grpc_host"))

    def on_stop(self) -> None:
        """Close the channel."""
        self._channel.close()

    @task
    def infer(self) -> None:
        """One request of the mix."""
        mix = mix_of(option(self.environment, "scenario"), self.host or "http://127.0.0.1:8000")
        question, explain = mix.next()
        name, metadata = mix.names[question.kind], as_metadata(mix.headers[question.kind])
        prepared = grpc_prepared(question, explain, metadata)
        begun = perf_counter()
        body, error = self.ask(prepared.head + prepared.tail, metadata)
        self.environment.events.request.fire(
            request_type=type(self).__name__,
            name=name,
            response_time=(perf_counter() - begun) * 1e3,
            response_length=len(body),
            exception=error,
            context={},
        )
        if explain and error is None:
            told(self.environment, name, explained_by(METHODS["ModelInfer"].response.FromString(body)))

    def ask(self, message: bytes, metadata: tuple[tuple[str, str], ...]) -> tuple[bytes, Exception | None]:
        """The answer's bytes, and why there's none."""
        try:
            call: Any = self._channel.unary_unary(f"/{INFERENCE}/ModelInfer")
            return call(message, metadata=metadata, timeout=TIMEOUT), None
        except grpc.RpcError as error:
            return b"", error


class StreamUser(GrpcUser):
    """Asks over a stream of its own, one request after another."""

    def ask(self, message: bytes, metadata: tuple[tuple[str, str], ...]) -> tuple[bytes, Exception | None]:
        """A stream for one request: what a client pays that opens one each time."""
        try:
            call: Any = self._channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")
            answers = call(iter([message]), metadata=metadata, timeout=TIMEOUT)
            response = METHODS["ModelStreamInfer"].response.FromString(next(iter(answers)))
        except grpc.RpcError as error:
            return b"", error
        if response.error_message:
            return b"", RuntimeError(response.error_message)
        return response.infer_response.SerializeToString(), None


class ScenarioShape(LoadTestShape):
    """As many users as the scenario has requests a second, at each time; a closed loop's users throughout."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users and how fast they come; None at the end."""
        assert self.runner is not None  # locust sets it before it asks
        scenario = scenario_named(option(self.runner.environment, "scenario"))
        at = float(self.get_run_time())  # type: ignore[no-untyped-call]
        end = scenario.warmup + scenario.duration
        if at >= end:
            return None
        if scenario.open is None:
            users = scenario.closed.users if scenario.closed is not None else 1
        else:
            users = math.ceil(float(rate_at(scenario.open.rate, scenario.open.shape, np.asarray([at]), end)[0]) / PER_USER)
        return max(1, users), max(1.0, users / 2)
