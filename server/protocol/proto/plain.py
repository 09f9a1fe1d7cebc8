"""A message as plain values, as Triton prints its configurations: the proto's own names, enums by name, 64-bit numbers as numbers, and
fields that weren't set with their defaults, except for messages and members of a oneof.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from server.protocol.proto.messages import Message

Field: TypeAlias = Any
"""A FieldDescriptor. Its stubs leave out what newer versions have."""


def message_values(message: Message) -> dict[str, Any]:
    """What is in `message`, its maps by key, in the order of its .proto file."""
    return {field.name: _values(message, field) for field in message.DESCRIPTOR.fields if _is_shown(message, field)}


def _is_shown(message: Message, field: Field) -> bool:
    return not field.has_presence or message.HasField(field.name)


def _values(message: Message, field: Field) -> Any:
    value = getattr(message, field.name)
    if is_map(field):
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _plain(value[key], inner) for key in sorted(value)}
    return [_plain(item, field) for item in value] if field.is_repeated else _plain(value, field)


def _plain(value: Any, field: Field) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return message_values(value) if field.type == FieldDescriptor.TYPE_MESSAGE else value


def is_map(field: Field) -> bool:
    """Whether a repeated field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
