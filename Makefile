# What a person calls, and CI too. Every target does the set-up it needs; `make` alone lists them.
#   PYTHON=python3.12 make setup      another interpreter        EXTRAS=gpu,dev make setup      other extras

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
RUN := $(VENV)/bin/python
TARGET := cpu

.PHONY: help setup tools models demo demo-alerts serve test conformance lint fmt types arch protos gpu-stubs gpu-check dist render image image-test cluster-check bench-front bench-edges bench-batcher bench-engine bench-lanes bench-export parity-matrix bench-monitor bench-autoscale bench-precision bench-routing bench-peers bench-loadgen soak-short soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## a virtual environment in .venv with the pinned packages (seconds when nothing changed)
	@.ci/setup

tools: ## fetch the real tools that tests ask (Prometheus, helm, …) into .tools, installing nothing
	@.ci/tools

models: setup ## fetch the trained weights that the demo and some tests use
	@$(RUN) -m examples.fetch

demo: models ## export three models, serve them, ask them, keep serving (DEMO_EXIT=1 stops)
	@$(RUN) -m examples.demo

demo-alerts: setup tools ## latency over 200 ms on an emulated T4: a webhook hears the WARNING and its end, Prometheus agrees
	@$(RUN) -m examples.alerts

serve: models ## the demo's server without the questions
	@$(RUN) -m examples.demo --no-questions

test: lint types tools ## lint, types, import contracts and all tests
	$(RUN) -m pytest -n auto

conformance: tools setup ## perf_analyzer, unmodified, against this server: every protocol and way, one table
	@$(RUN) -m tests.conformance.perf

lint: setup ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

fmt: setup ## rewrite the code as ruff has it
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

types: setup ## mypy --strict
	$(RUN) -m mypy

arch: setup ## import contracts, sizes, names
	$(RUN) -m pytest tests/architecture

protos: setup ## compile the .proto files into server/protocol/proto/descriptors.binpb
	@cd server/protocol/proto && ../../../$(RUN) -m grpc_tools.protoc -I . --descriptor_set_out=descriptors.binpb \
	  model_config.proto oip.proto health.proto reflection.proto

gpu-stubs: setup ## fetch TensorRT's, CUDA's and onnxruntime-gpu's packages and write down which names they have
	@$(RUN) -m tests.nvidia.stubs
	@$(RUN) -m tests.nvidia.ort_options

gpu-check: setup ## prove the GPU code on this machine's GPU; writes docs/proofs/
	@$(RUN) -m benchmarks.gpu_check

dist: setup ## wheel and source archive in dist/
	$(RUN) -m build --no-isolation

render: setup ## what is generated for the chart: schema, README, rules, dashboards
	@$(RUN) -m tests.deploy.pages

image: ## the container image tidegate:cpu (TARGET=monitor another; without docker by buildah)
	@.ci/image $(TARGET)

image-test: setup ## build and run the images without root, network, capabilities or a writable file; stop one under load
	@for target in cpu monitor; do .ci/image $$target; done
	$(RUN) -m pytest -p no:cacheprovider tests/deploy/image_checks.py

cluster-check: setup tools ## the chart on a real cluster, for those who have docker and kind
	@.ci/cluster-check

bench-front: setup ## the HTTP front against a raw ASGI app on the same server
	$(RUN) -m benchmarks.front

bench-edges: setup ## gRPC against an empty servicer, images in bodies, shared memory and JSON
	@$(RUN) -m benchmarks.edges

bench-batcher: setup ## the batcher against other policies and the exact optimum, in simulated time
	$(RUN) -m benchmarks.batcher

bench-engine: setup ## an emulated T4 by deadline, MiniLM by length
	$(RUN) -m benchmarks.engine

bench-lanes: setup ## process lanes, the arbiter, and what a killed lane costs
	$(RUN) -m benchmarks.lanes

bench-export: setup ## the exporters' targets: size, speed, parity and memory of six trained models
	@$(RUN) -m benchmarks.export

parity-matrix: models ## six trained models over all levels and precisions, and one of more than 2 GiB; goes on where it was stopped
	@$(RUN) -m benchmarks.parity_matrix

bench-monitor: setup ## how much of a core the monitor takes
	$(RUN) -m benchmarks.monitor

bench-autoscale: setup ## which figure to scale replicas by, in simulated time
	@$(RUN) -m benchmarks.autoscale

bench-precision: setup ## precision's targets: drift simulated, the ladder on an emulated T4 in real time (4 minutes)
	@$(RUN) -m benchmarks.precision

bench-routing: setup ## what choosing a version costs, and the canary over simulated roll-outs
	@$(RUN) -m benchmarks.routing

bench-peers: setup ## seven other servers on the same work, each in its own environment
	@$(RUN) -m benchmarks.peers

bench-loadgen: setup ## MLPerf's LoadGen on MiniLM, and an emulated T4 at a T4's rates
	@$(RUN) -m benchmarks.loadgen

soak-short: setup ## five minutes of two days' load, while memory, threads and files are counted
	@$(RUN) -m benchmarks.soak

soak: setup ## the same in an hour
	@$(RUN) -m benchmarks.soak --minutes 60

clean: ## remove what was built; the environment and the fetched weights stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
