"""Which arithmetic unit is the best for a format, of those that a kernel set may use."""

from __future__ import annotations

from collections.abc import Mapping

# Names of csrc/ceilings. Only exact int8 activations can use integer units; all other formats meet
# bf16 activations (or E4M3 ones, whose products with E4M3 weights are exact in bf16).
_FLOAT_UNITS = {
    "scalar": ("sse2_f32",),
    "avx2": ("avx2_f32",),
    "avx2_vnni": ("avx2_f32",),
    "avx512": ("avx2_f32", "avx512_f32"),
    "avx512_bf16": ("avx2_f32", "avx512_f32", "avx512_bf16"),
    "amx": ("avx2_f32", "avx512_f32", "avx512_bf16", "amx_bf16"),
}
_INTEGER_UNITS = {
    "scalar": (),
    "avx2": ("avx2_int16",),
    "avx2_vnni": ("avx2_int16", "avx_vnni_int8"),
    "avx512": ("avx2_int16", "avx_vnni_int8", "avx512_int16"),
    "avx512_bf16": ("avx2_int16", "avx_vnni_int8", "avx512_int16", "avx512_vnni_int8"),
    "amx": ("avx2_int16", "avx_vnni_int8", "avx512_int16", "avx512_vnni_int8", "amx_int8"),
}
_INTEGER_FORMATS = ("int8",)


def best_unit(weight_format: str, isa: str, peaks: Mapping[str, float]) -> str:
    """The fastest unit of ``peaks`` (operations a second) for this format and these kernels."""
    names = _FLOAT_UNITS[isa]
    if weight_format in _INTEGER_FORMATS:
        names += _INTEGER_UNITS[isa]
    return max((name for name in names if name in peaks), key=peaks.__getitem__)
