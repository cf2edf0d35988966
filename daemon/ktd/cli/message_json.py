"""API messages as JSON for programs: field names as in the API, integers as integers.

protobuf's own mapping writes 64-bit integers as strings, which every reader would have to undo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from google.protobuf.message import Message


def message_json(message: Message) -> Any:
    """A dict with every field; unset messages are null, times ISO 8601, durations seconds."""
    if isinstance(message, Timestamp):
        return message.ToJsonString()
    if isinstance(message, Duration):
        return message.ToTimedelta().total_seconds()
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def enum_name(message: Message, field_name: str) -> str:
    """The value of an enum field without its prefix: ``READY`` for ``ENGINE_PHASE_READY``."""
    return _enum(message.DESCRIPTOR.fields_by_name[field_name], getattr(message, field_name))


# Descriptors have one type for each of protobuf's implementations; hence Any.


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_json(value)
    if field.enum_type is not None:
        return _enum(field, value)
    return value


def _enum(field: Any, number: int) -> str:
    """The value's name without what all names of its enum begin with."""
    enum = field.enum_type
    zero = enum.values_by_number[0].name
    prefix = zero.removesuffix("UNSPECIFIED")
    known: Any = enum.values_by_number.get(number)
    return known.name.removeprefix(prefix) if known else str(number)
