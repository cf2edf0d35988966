"""What ktd says that SGLang chooses by the size of a GPU, beside what SGLang chooses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from ktd.enginespec import EngineSpec
from ktd.model.sglang_choice import default_chunk, kept_free
from ktd.sgl.server_arguments import parse

pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = Path(__file__).parents[2] / "models/ktd-tiny"
MIB = 1 << 20
# 0.5.17 has the rule where the options are, and applies it as they are parsed.
_NEW = find_spec("sglang.srt.arg_groups.memory_hook") is not None
_RULE = "sglang.srt.arg_groups.memory_hook" if _NEW else "sglang.srt.server_args"


def resolved(arguments):
    """With what SGLang chose."""
    if not _NEW:
        return arguments
    from sglang.srt.arg_groups.overrides import resolved_view

    arguments.resolve_once()
    return resolved_view(arguments)


@pytest.mark.parametrize("chunk", [None, 1024, 20000])
@pytest.mark.parametrize("size", [8192, 40960, 81559, 143771, 196608])
def test_chunk_and_what_stays_free_are_sglangs(tmp_path, monkeypatch, size, chunk):
    """Its rule looks at a size alone, so it can be asked on a host without a GPU."""
    monkeypatch.setattr(f"{_RULE}.get_device_memory_capacity", lambda _=None: size)
    words = () if chunk is None else ("--chunked-prefill-size", str(chunk))
    spec = EngineSpec(
        engine_id="t-1",
        runtime_dir=str(tmp_path),
        model_path=str(MODEL),
        sglang_args=words,
        device="cpu",
        moe_layers=tuple(range(6)),
        num_experts=32,
        experts_per_token=1,
        slots=(8,) * 6,
        initial=((),) * 6,
    )
    chosen = resolved(parse(spec))
    tokens = chunk or default_chunk(size * MIB)
    assert chosen.chunked_prefill_size == tokens
    # Without a GPU there are no graphs.
    kept = kept_free(size * MIB, chunk=tokens, ranks=1, graph_rows=0)
    assert chosen.mem_fraction_static == pytest.approx(round(1 - kept / (size * MIB), 3))
