"""How fast experts are laid out for SGLang's Marlin runner: by its code, by ktd, and the link.

    engine.sh run python3 scripts/gpu_host/rearrange.py [--kind gptq] [--hidden 2048] [--width 768]

Kinds are those of tests/sgl/four_bits.py. Prints how long it took to learn from SGLang's code where
an expert's numbers go, what that code takes for one expert, what many at once take, and the rate of
the link that brings them. Medians of fifteen calls.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ktd.bench.link import link_bytes_per_second
from ktd.sgl.learnt_layout import learnt
from ktd.sgl.one_expert import OneExpert
from tests.sgl.four_bits import KINDS, Experts, Sizes
from tests.sgl.gpu_sglang import stand_alone

_WARM, _CALLS = 3, 15


def milliseconds(call: Callable[[], object]) -> float:
    """Median of some calls, on the device and on the host that waits for it."""
    found = []
    for _ in range(_WARM + _CALLS):
        torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - before))
    return statistics.median(found[_WARM:])


def main() -> int:
    """Measures one kind."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kind", choices=KINDS, default="gptq")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--experts", type=int, default=64)
    args = parser.parse_args()
    stand_alone()
    device = torch.device("cuda")
    experts = Experts(args.kind, Sizes(args.experts, args.hidden, args.width, args.group))
    with device:
        one = OneExpert(experts.method, experts.layer(), experts.format, experts.attributes, device)
    before = time.perf_counter()
    layout = learnt(one)
    torch.cuda.synchronize()
    if layout is None:
        print(f"{args.kind}: SGLang's code does more than to move numbers")
        return 1
    print(f"learnt in {time.perf_counter() - before:.2f} s")
    rows = {
        name: row.unsqueeze(0).repeat(args.experts, *[1] * row.dim())
        for name, row in one.rows.items()
    }
    room = layout.room_for(args.experts, device)
    mega = 1e-6 * layout.slot_bytes
    own = milliseconds(one.converted)
    print(f"SGLang's code, an expert of {mega:.2f} MB: {own:.3f} ms, {mega / own:.1f} GB/s")
    many = milliseconds(lambda: layout.lay_out(rows, room))
    rate = args.experts * mega / many
    print(f"{args.experts} experts at once: {many:.3f} ms, {rate:.0f} GB/s")
    link = link_bytes_per_second()
    print(f"the link: {0 if link is None else link / 1e9:.1f} GB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
