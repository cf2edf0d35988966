"""The table of kernels that `ktd doctor` prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ktd.config.options import ISAS
from ktd.experts.isa import isas


def test_the_table_lists_every_kernel_best_first():
    """The widest come first, and what needs nothing last."""
    best_first = ["amx", "avx512_bf16", "avx512", "avx2_vnni", "avx2", "scalar"]
    assert [isa.name for isa in isas()] == best_first
    assert {isa.name for isa in isas()} == set(ISAS), "--isa takes what the table has"
    assert isas()[-1].required == ()
    assert isas()[-1].supported


def test_what_is_missing_is_part_of_what_is_required():
    """A kernel is supported exactly when nothing that it requires is missing."""
    for isa in isas():
        assert set(isa.missing) <= set(isa.required)
        assert isa.supported == (not isa.missing)


def test_the_table_agrees_with_the_kernel():
    """A feature that /proc/cpuinfo lists is not reported missing."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    offered = set(flags.split(":", 1)[1].split())
    for isa in isas():
        assert set(isa.missing) == set(isa.required) - offered


def test_the_table_needs_no_torch():
    """`ktd doctor` runs on hosts that have no torch."""
    code = "import sys; sys.modules['torch'] = None; from ktd.experts.isa import isas; isas()"
    subprocess.run([sys.executable, "-c", code], check=True)
