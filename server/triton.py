"""What is served, in Triton's words: the ModelConfig of a version, which its clients read before they ask. It decides nothing.

What Triton has no word for (objectives, padding, precisions) is left out; `/batcher` and `/manifest` tell it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.engine.engine import Engine
from server.protocol.proto.messages import Message, message_class
from server.repository.declare.sections import Step
from server.repository.model_config import ModelConfig, Versions
from server.router.table import ServedVersion
from server.tensors import TensorSpec

TritonConfig = message_class("inference.ModelConfig")
TritonSequences = message_class("inference.ModelSequenceBatching")
TritonBatching = message_class("inference.ModelDynamicBatching")


def triton_config(served: ServedVersion) -> Message:
    """The configuration of a ready version: as it runs, not only as it was asked for."""
    front, engine, config = served.serving, served.engine, served.config
    assert front is not None
    message = TritonConfig(
        name=served.model,
        platform=served.platform,
        backend=served.platform,
        version_policy=_policy(config.versions),
        max_batch_size=front.max_rows,
        input=[_tensor(spec, front.max_rows) for spec in front.inputs],
        output=[_output(spec, front.max_rows, config) for spec in front.outputs],
        optimization={"priority": "PRIORITY_DEFAULT"},
        default_model_filename=served.filename,
        model_transaction_policy={"decoupled": config.decoupled},
    )
    if engine is not None:
        message.MergeFrom(_own(served, engine))
        if engine.max_rows > 1:
            message.dynamic_batching.CopyFrom(_batching(config))
    if config.cache.max_bytes:
        message.response_cache.enable = True
    if config.sequence is not None:
        message.sequence_batching.CopyFrom(TritonSequences(direct={}, max_sequence_idle_microseconds=_us(config.sequence.idle_timeout)))
    if config.ensemble is not None:
        message.MergeFrom(TritonConfig(ensemble_scheduling={"step": [_step(step) for step in config.ensemble.steps]}))
    return message


def _own(served: ServedVersion, engine: Engine) -> Message:
    """What only a version with lanes of its own has."""
    parameters = {**served.config.parameters, "precision": engine.key.precision}
    return TritonConfig(
        instance_group=[_instances(served, engine)],
        model_warmup=list(_warmup(engine, served.config)),
        parameters={name: {"string_value": value} for name, value in parameters.items()},
    )


def _step(step: Step) -> dict[str, Any]:
    version = int(step.version) if step.version else -1
    return {"model_name": step.model, "model_version": version, "input_map": step.inputs, "output_map": step.outputs}


def _policy(said: Versions) -> Mapping[str, Any]:
    if said.policy == "latest":
        return {"latest": {"num_versions": said.count}}
    return {"all": {}} if said.policy == "all" else {"specific": {"versions": [int(version) for version in said.policy]}}


def _tensor(spec: TensorSpec, max_rows: int) -> dict[str, Any]:
    """Without the axis that counts rows, which goes without saying in a model that has batches."""
    dims = spec.shape[1:] if max_rows and spec.batch_axis == 0 else spec.shape
    return {"name": spec.name, "data_type": spec.dtype.config, "dims": dims}


def _output(spec: TensorSpec, max_rows: int, config: ModelConfig) -> dict[str, Any]:
    said = config.outputs.get(spec.name)
    return {**_tensor(spec, max_rows), "label_filename": (said.labels if said else None) or ""}


def _instances(served: ServedVersion, engine: Engine) -> dict[str, Any]:
    device = served.device
    gpus = [int(device.removeprefix("cuda:"))] if device.startswith("cuda:") else []
    return {"name": f"{served.model}_0", "kind": "KIND_GPU" if gpus else "KIND_CPU", "count": len(engine.lanes), "gpus": gpus}


def _batching(config: ModelConfig) -> Message:
    batching, queue = config.batching, config.queue
    levels = queue.priorities if queue.priorities > 1 else 0
    return TritonBatching(
        preferred_batch_size=batching.preferred_rows,
        max_queue_delay_microseconds=_us(batching.max_wait),
        priority_levels=levels,
        default_priority_level=levels,
        default_queue_policy={
            "timeout_action": "REJECT",
            "default_timeout_microseconds": _us(queue.timeout),
            "allow_timeout_override": True,
            "max_queue_size": queue.max_rows,
        },
    )


def _warmup(engine: Engine, config: ModelConfig) -> Iterator[dict[str, Any]]:
    """The runs that model.yaml asks for; axes that vary are as long as warm-up found out, which isn't told here."""
    for rows in config.warmup.rows if engine.max_rows else ():
        yield {"name": f"{rows} rows", "batch_size": rows, "count": 1}


def _us(seconds: float | None) -> int:
    return round((seconds or 0.0) * 1e6)
