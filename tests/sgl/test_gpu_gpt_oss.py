"""gpt-oss on a GPU: MXFP4 experts on SGLang's Marlin runner, against the same values in float32.

One engine has a layer with no slot, one with some and one with a slot for every expert; experts
move between two measurements, and what it decodes passes through graphs.
"""

import pytest

torch = pytest.importorskip("torch", reason="engines are made of torch tensors")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if torch.cuda.get_device_capability() < (9, 0):
    pytest.skip("SGLang computes MXFP4 on Hopper and newer GPUs", allow_module_level=True)
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.app.moe_runner import runner_words
from ktd.model.facts import read_facts
from tests.live import serve_arguments
from tests.sgl import gpt_oss_models, tiny_models
from tests.sgl.live_host import LiveHost
from tests.sgl.test_architectures import (
    EXPERTS,
    SLOTS,
    expected,
    require_counts,
    require_decoding,
    require_near,
)

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("host_memory", "threshold"),
    [("copy", None), ("copy", 8), ("mmap", None)],
    ids=["copy", "streamed", "mmap"],
)
def test_log_probabilities_agree_with_transformers_at_any_placement(
    host_memory, threshold, tmp_path
):
    """Prompts shorter and longer than the window of every other layer; also where they stream."""
    gpt_oss_models.build(tmp_path)
    facts = read_facts(tmp_path / "quantised", device="cuda")
    reference = tmp_path / "reference"
    with LiveHost(
        *runner_words(facts, "cuda"),
        *serve_arguments(),
        model=tmp_path / "quantised",
        moe_layers=facts.moe_layers,
        num_experts=facts.num_experts,
        slots=[0, SLOTS, EXPERTS],
        device="cuda",
        host_memory=host_memory,
        prefill_threshold=threshold,
    ) as host:
        host.ready()
        hello = host.ranks()[0].hello()
        assert hello["host_store_bytes"] == facts.host_store_bytes
        assert (hello.get("prefill_buffer_bytes", 0) > 0) == (threshold is not None)
        texts = tiny_models.some_texts()
        wanted = expected(reference, texts)
        require_near([host.logprobs(ids) for ids in texts], wanted, "first placement")
        for batch in range(1, 4):
            host.swap(batch, [(facts.moe_layers[1], batch - 1, batch + 3)])
        require_near([host.logprobs(ids) for ids in texts], wanted, "after swaps")
        texts = tiny_models.some_texts(2, 150)
        wanted = expected(reference, texts)
        require_near([host.logprobs(ids) for ids in texts], wanted, "longer than the window")
        require_decoding(host, reference, texts)
        require_counts(host, facts)
