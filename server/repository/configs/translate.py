"""A Triton ModelConfig in model.yaml's words: what each field means here, and which fields nothing here acts on.

It doesn't know which models and devices there are; what it makes is checked as model.yaml is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.protocol.proto.messages import Message
from server.protocol.proto.plain import is_map
from server.repository.configs.pbtxt import FieldPath
from server.tensors import DTYPES
from server.validation import KeyPath

BACKENDS: Mapping[str, str] = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "trt",
    "tensorrt": "trt",
    "pytorch_libtorch": "pytorch",
}
"""Triton's platforms and backends that have another name here."""
ENSEMBLE = "ensemble"
CACHE_BYTES = 64 << 20
"""What a model's cache holds that is only said to have one."""
PROVIDERS: Mapping[str, str] = {"tensorrt": "tensorrt", "cuda": "cuda"}
"""Triton's accelerators of GPUs that are providers of onnxruntime's here."""
ACCELERATOR_KEYS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "max_workspace_size_bytes": ("workspace", {}),
    "trt_max_workspace_size": ("workspace", {}),
    "trt_builder_optimization_level": ("builder_level", {}),
    "gpu_mem_limit": ("memory", {}),
    "arena_extend_strategy": (
        "arena",
        {"0": "double", "1": "exact", "kNextPowerOfTwo": "double", "kSameAsRequested": "exact"},
    ),
    "cudnn_conv_algo_search": (
        "conv_search",
        {"0": "exhaustive", "1": "heuristic", "2": "default", "EXHAUSTIVE": "exhaustive", "HEURISTIC": "heuristic", "DEFAULT": "default"},
    ),
}
"""An accelerator's parameters that have another name here, and their values that do."""
_DATATYPES = {kind.config: kind.name for kind in DTYPES.values()}

UNDERSTOOD: Mapping[str, tuple[str, ...]] = {
    "": (
        *("name", "platform", "backend", "max_batch_size", "default_model_filename", "version_policy", "input", "output", "parameters"),
        *(
            "dynamic_batching",
            "instance_group",
            "model_warmup",
            "model_transaction_policy",
            "optimization",
            "ensemble_scheduling",
            "sequence_batching",
            "response_cache",
        ),
    ),
    "version_policy": ("latest", "all", "specific"),
    "version_policy.latest": ("num_versions",),
    "version_policy.specific": ("versions",),
    "input": ("name", "data_type", "dims", "format", "reshape"),
    "input.reshape": ("shape",),
    "output": ("name", "data_type", "dims", "label_filename", "reshape"),
    "output.reshape": ("shape",),
    "dynamic_batching": (
        *("preferred_batch_size", "max_queue_delay_microseconds", "priority_levels", "default_priority_level", "default_queue_policy"),
    ),
    "dynamic_batching.default_queue_policy": (
        *("timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size"),
    ),
    "instance_group": ("name", "count", "kind", "gpus"),
    "model_warmup": ("name", "batch_size", "count", "inputs"),
    "model_warmup.inputs": ("data_type", "dims", "zero_data", "random_data"),
    "parameters": ("string_value",),
    "sequence_batching": ("state", "max_sequence_idle_microseconds", "control_input", "direct", "oldest"),
    "sequence_batching.state": ("input_name", "output_name", "data_type", "dims"),
    "response_cache": ("enable",),
    "ensemble_scheduling": ("step",),
    "ensemble_scheduling.step": ("model_name", "model_version", "input_map", "output_map"),
    "model_transaction_policy": ("decoupled",),
    "optimization": ("execution_accelerators",),
}
"""Fields by the message that they stand in, which `translate` acts on or speaks of, or that say nothing which would have to be acted on."""


@dataclass(slots=True)
class Translated:
    """`values` in model.yaml's words; `fields` says which field of the message each key came from, `ignored` what nothing acts on."""

    values: dict[str, Any] = field(default_factory=dict)
    fields: dict[KeyPath, FieldPath] = field(default_factory=dict)
    ignored: list[tuple[FieldPath, str]] = field(default_factory=list)

    def say(self, key: KeyPath, value: Any, source: FieldPath) -> None:
        """Put `value` at `key`, making sections on its way."""
        at: dict[Any, Any] = self.values
        for number, part in enumerate(key[:-1], 1):
            self.fields.setdefault(key[:number], source)
            at = at.setdefault(part, {})
        at[key[-1]] = value
        self.fields[key] = source

    def pass_over(self, source: FieldPath, why: str = "nothing here acts on it") -> None:
        """Note a field that says something which isn't done."""
        self.ignored.append((source, why))


def translate(message: Message) -> Translated:
    """What a configuration says. Fields that aren't set say nothing."""
    found = Translated()
    for part in _PARTS:
        part(message, found)
    found.ignored += [(path, "nothing here acts on it") for path in _set_fields(message, (), "") if path not in dict(found.ignored)]
    return found


def _naming(message: Message, found: Translated) -> None:
    if message.name:
        found.say(("name",), message.name, ("name",))
    said = "backend" if message.backend else "platform"
    name = message.backend or message.platform
    if name and name != ENSEMBLE:
        found.say(("backend",), BACKENDS.get(name, name), (said,))
    if message.default_model_filename:
        found.say(("file",), message.default_model_filename, ("default_model_filename",))
    for name, parameter in sorted(message.parameters.items()):
        found.say(("parameters", name), parameter.string_value, ("parameters",))


def _versions(message: Message, found: Translated) -> None:
    policy, choice = message.version_policy, message.version_policy.WhichOneof("policy_choice")
    source = ("version_policy", 0)
    if choice == "all":
        found.say(("versions", "policy"), "all", source)
    elif choice == "specific":
        found.say(("versions", "policy"), list(policy.specific.versions), (*source, "specific", 0, "versions"))
    elif choice == "latest":
        found.say(("versions", "policy"), "latest", source)
        found.say(("versions", "count"), policy.latest.num_versions or 1, (*source, "latest", 0, "num_versions"))


def _tensors(message: Message, found: Translated) -> None:
    """Triton leaves the batch axis out where max_batch_size is above 0, and there's none where it's 0."""
    if message.max_batch_size:
        found.say(("batching", "max_rows"), message.max_batch_size, ("max_batch_size",))
    for ours, theirs, tensors in (("inputs", "input", message.input), ("outputs", "output", message.output)):
        for number, tensor in enumerate(tensors):
            source = (theirs, number)
            key = (ours, tensor.name)
            found.say((*key, "batch_axis"), 0 if message.max_batch_size else None, source)
            if tensor.dims:
                found.say((*key, "shape"), [*([-1] if message.max_batch_size else []), *tensor.dims], (*source, "dims"))
            if tensor.HasField("reshape"):
                found.say((*key, "reshape"), [*([-1] if message.max_batch_size else []), *tensor.reshape.shape], (*source, "reshape", 0))
            if tensor.data_type:
                found.say((*key, "dtype"), _DATATYPES[_enum_name(tensor, "data_type")], (*source, "data_type"))
            if theirs == "output" and tensor.label_filename:
                found.say((*key, "labels"), tensor.label_filename, (*source, "label_filename"))


def _batching(message: Message, found: Translated) -> None:
    if not message.HasField("dynamic_batching"):
        return
    batching, policy, source = message.dynamic_batching, message.dynamic_batching.default_queue_policy, ("dynamic_batching", 0)
    queue = (*source, "default_queue_policy", 0)
    for key, value, place in (
        (("batching", "preferred_rows"), sorted(set(batching.preferred_batch_size)), (*source, "preferred_batch_size")),
        (("batching", "max_wait"), batching.max_queue_delay_microseconds / 1e6, (*source, "max_queue_delay_microseconds")),
        (("queue", "priorities"), batching.priority_levels, (*source, "priority_levels")),
        (("queue", "timeout"), policy.default_timeout_microseconds / 1e6, (*queue, "default_timeout_microseconds")),
        (("queue", "max_rows"), policy.max_queue_size, (*queue, "max_queue_size")),
    ):
        if value:
            found.say(key, value, place)
    if batching.default_priority_level not in (0, batching.priority_levels):
        found.pass_over((*source, "default_priority_level"), f"requests without a priority have the last one, {batching.priority_levels}")
    if batching.priority_queue_policy:
        found.pass_over((*source, "priority_queue_policy"), "every priority has default_queue_policy; a request's `timeout` goes before it")
    if policy.timeout_action:
        found.pass_over((*queue, "timeout_action"), "a request that is too late is refused, not put last")


def _instances(message: Message, found: Translated) -> None:
    """Several groups are one: as many lanes as they have together, on the first one's device."""
    if not message.instance_group:
        return
    source = ("instance_group", 0)
    found.say(("lanes", "count"), sum(group.count or 1 for group in message.instance_group), (*source, "count"))
    first = message.instance_group[0]
    kind = _enum_name(first, "kind")
    if kind == "KIND_GPU" or (kind == "KIND_AUTO" and first.gpus):
        found.say(("lanes", "device"), f"cuda:{first.gpus[0] if first.gpus else 0}", (*source, "gpus" if first.gpus else "kind"))
    elif kind == "KIND_CPU":
        found.say(("lanes", "device"), "cpu", (*source, "kind"))
    devices = {(group.kind, gpu) for group in message.instance_group for gpu in group.gpus or (-1,)}
    if len(devices) > 1:
        found.pass_over(source, "a model's lanes are on one device: the first that is named")


def _warmup(message: Message, found: Translated) -> None:
    if message.model_warmup:
        rows = sorted({warmup.batch_size or 1 for warmup in message.model_warmup})
        found.say(("warmup", "rows"), rows, ("model_warmup", 0, "batch_size"))


def _acceleration(message: Message, found: Translated) -> None:
    """onnxruntime's providers for GPUs. A precision that Triton would have TensorRT make at load is made by the exporter here."""
    accelerators = message.optimization.execution_accelerators
    for kind in ("gpu_execution_accelerator", "cpu_execution_accelerator"):
        for number, accelerator in enumerate(getattr(accelerators, kind)):
            source = ("optimization", 0, "execution_accelerators", 0, kind, number)
            if kind.startswith("cpu") or accelerator.name not in PROVIDERS:
                found.pass_over(source, f"the model's file runs as it is, not through {accelerator.name or 'an accelerator'}")
                continue
            found.say(("accelerator", "provider"), PROVIDERS[accelerator.name], source)
            for name, value in sorted(accelerator.parameters.items()):
                _accelerator_parameter(found, source, name, value)


def _accelerator_parameter(found: Translated, source: FieldPath, name: str, value: str) -> None:
    """One of the strings by which Triton sets a provider's options."""
    if name == "precision_mode" and value.upper() != "FP32":
        found.pass_over(source, f"precision lies in the file: `tidegate export --precisions {value.lower()}` makes such a variant")
    elif name in ACCELERATOR_KEYS:
        key, values = ACCELERATOR_KEYS[name]
        found.say(("accelerator", key), values.get(value, int(value) if value.isdecimal() else value), source)
    elif name not in ("precision_mode", "trt_engine_cache_enable"):
        found.pass_over((*source, "parameters"), f"nothing here acts on {name!r}")


def _cache(message: Message, found: Translated) -> None:
    """Triton gives its cache a size for all models together; here each has its own."""
    if message.response_cache.enable:
        found.say(("cache", "max_bytes"), CACHE_BYTES, ("response_cache", 0, "enable"))


def _ensemble(message: Message, found: Translated) -> None:
    source: FieldPath = ("ensemble_scheduling", 0, "step")
    steps = [
        {
            "model": step.model_name,
            **({"version": step.model_version} if step.model_version > 0 else {}),  # -1 is the latest
            "inputs": dict(step.input_map),
            "outputs": dict(step.output_map),
        }
        for step in message.ensemble_scheduling.step
    ]
    if steps:
        found.say(("ensemble", "steps"), steps, source)


def _sequences(message: Message, found: Translated) -> None:
    sequence, source = message.sequence_batching, ("sequence_batching", 0)
    if sequence.state:
        states = [{"input": state.input_name, "output": state.output_name} for state in sequence.state]
        found.say(("sequence", "state"), states, (*source, "state"))
        if sequence.max_sequence_idle_microseconds:
            idle = sequence.max_sequence_idle_microseconds / 1e6
            found.say(("sequence", "idle_timeout"), idle, (*source, "max_sequence_idle_microseconds"))
    elif message.HasField("sequence_batching"):
        found.pass_over(source, "without a state there's nothing that the server would keep")
    for number, control in enumerate(sequence.control_input):
        kinds = ", ".join(_enum_name(each, "kind") for each in control.control)
        why = f"the server doesn't feed {control.name} ({kinds}): if the model has that input, every client must send it as any other"
        found.pass_over((*source, "control_input", number), why)
    if message.model_transaction_policy.decoupled:
        found.say(("decoupled",), True, ("model_transaction_policy", 0, "decoupled"))


_PARTS: tuple[Callable[[Message, Translated], None], ...] = (
    _naming,
    _versions,
    _tensors,
    _batching,
    _instances,
    _warmup,
    _acceleration,
    _cache,
    _ensemble,
    _sequences,
)


def _enum_name(message: Message, name: str) -> str:
    enum = message.DESCRIPTOR.fields_by_name[name].enum_type
    known = enum.values_by_number.get(getattr(message, name))
    return known.name if known is not None else ""


def _set_fields(message: Message, above: FieldPath, dotted: str) -> Iterator[FieldPath]:
    """The fields that are set and not UNDERSTOOD, outermost first: what is inside one of them isn't looked at."""
    for one, value in message.ListFields():
        name = f"{dotted}.{one.name}".lstrip(".")
        if one.name not in UNDERSTOOD[dotted]:
            yield (*above, one.name)
        elif name in UNDERSTOOD:
            for number, part in enumerate(_parts(one, value)):
                yield from _set_fields(part, (*above, one.name, number), name)


def _parts(one: Any, value: Any) -> Iterable[Message]:
    """The messages that a field holds."""
    if is_map(one):
        return [value[key] for key in sorted(value)]
    return value if one.is_repeated else (value,)
