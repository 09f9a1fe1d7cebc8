"""A message as plain values: what Triton prints, against protobuf's own JSON."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from server.protocol.proto.messages import message_class
from server.protocol.proto.plain import message_values

Config: Any = message_class("inference.ModelConfig")
Texts = st.text(st.characters(codec="utf-8"), max_size=8)


def test_what_was_not_set_is_printed_with_its_default() -> None:
    values = message_values(Config(name="m", input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}]))
    assert values["max_batch_size"] == 0
    assert values["platform"] == ""
    assert values["metric_tags"] == {}
    assert values["output"] == []
    assert values["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [-1, 4],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]


def test_messages_and_choices_that_were_not_set_are_left_out() -> None:
    values = message_values(Config(name="m"))
    assert not {"version_policy", "dynamic_batching", "sequence_batching", "ensemble_scheduling", "optimization"} & values.keys()
    assert message_values(Config(version_policy={"all": {}}))["version_policy"] == {"all": {}}


@given(
    delay=st.integers(0, 2**64 - 1),
    rows=st.lists(st.integers(1, 2**31 - 1), max_size=3),
    policies=st.dictionaries(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), max_size=3),
    tags=st.dictionaries(Texts, Texts, max_size=3),
    versions=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
)
def test_they_read_back_to_the_same_message(
    delay: int, rows: list[int], policies: dict[int, int], tags: dict[str, str], versions: list[int]
) -> None:
    message = Config(
        dynamic_batching={"preferred_batch_size": rows, "max_queue_delay_microseconds": delay},
        version_policy={"specific": {"versions": versions}},
        metric_tags=tags,
    )
    for level, size in policies.items():
        message.dynamic_batching.priority_queue_policy[level].max_queue_size = size
    values = message_values(message)
    assert values["dynamic_batching"]["max_queue_delay_microseconds"] == delay
    assert ParseDict(values, Config()) == message
