"""What the kernels take by value, as ``kernels/*.cu`` declare it; they check the sizes."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_uint32, c_uint64, sizeof
from typing import ClassVar

STATE_BYTES = 32


class Channel(Structure):
    """``kernels/channel.h``: one channel's memory, by its addresses on the device."""

    _fields_: ClassVar = [
        ("state", c_uint64),
        ("row_ours", c_uint64),
        ("row_late", c_uint64),
        ("box", c_uint64),
        ("told", c_uint64),
        ("x", c_uint64),
        ("ids", c_uint64),
        ("weights", c_uint64),
        ("answer", c_uint64),
        ("give_up_ns", c_uint64),
        ("limit_ns", c_uint64),
        ("hidden", c_uint32),
        ("always", c_uint32),
    ]


class Routing(Structure):
    """``kernels/split.cu``: one layer's routing and tables."""

    _fields_: ClassVar = [
        ("ids", c_uint64),
        ("weights", c_uint64),
        ("x", c_uint64),
        ("table", c_uint64),
        ("resident", c_uint64),
        ("counters", c_uint64),
        ("decode_counters", c_uint64),
        ("num_tokens", c_uint64),
        ("slots", c_uint64),
        ("seen", c_uint64),
        ("layer", c_int32),
        ("rows", c_int32),
        ("top_k", c_int32),
        ("num_experts", c_int32),
        ("first_decode_row", c_int32),
        ("map_padding", c_int32),
        ("seen_width", c_int32),
        ("deferred", c_int32),
    ]


class Sum(Structure):
    """``kernels/collect.cu``: where the answer is added."""

    _fields_: ClassVar = [
        ("out", c_uint64),
        ("num_tokens", c_uint64),
        ("rows", c_int32),
        ("add", c_int32),
    ]


class Moves(Structure):
    """``kernels/rearrange.cu``: experts, and how they are to lie."""

    _fields_: ClassVar = [
        ("source", c_uint64),
        ("out", c_uint64),
        ("places", c_uint64),
        ("fixed", c_uint64),
        ("source_pitch", c_uint64),
        ("words", c_uint32),
        ("rows", c_int32),
    ]


def sizes() -> list[str]:
    """Options of the compiler by which the kernels check that they mean the same memory."""
    names = {"CHANNEL": Channel, "ROUTING": Routing, "SUM": Sum, "MOVES": Moves}
    defined = {name: sizeof(structure) for name, structure in names.items()}
    defined["STATE"] = STATE_BYTES
    return [f"-DKTD_{name}_BYTES={size}" for name, size in defined.items()]
