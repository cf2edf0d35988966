"""What 4-bit experts in slots take from SGLang, read from its source, so no GPU is needed.

Both releases that ktd runs on are meant: one skips the id -1 on Marlin by itself, the other where
it is given an expert map.
"""

import ast
import re

import pytest

from tests.sgl.test_contract import moved
from tests.sgl.test_gpu_contract import function, source_of

pytestmark = pytest.mark.filterwarnings("ignore")
sglang = pytest.importorskip("sglang", reason="this is about SGLang's source")

FUSED = "sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe"
GEMM = "sglang.kernels.ops.moe.moe_wna16_marlin"
RUNNER = "sglang.srt.layers.moe.moe_runner.marlin"
KERNELS = "sglang.srt.hardware_backend.gpu.quantization"
SCHEMES = "sglang.srt.layers.quantization"
W4A16 = f"{SCHEMES}.compressed_tensors.schemes.compressed_tensors_wNa16_moe"


def arguments(module, name):
    """Names of a function's parameters."""
    found = ast.parse(function(module, name)).body[0].args
    return [argument.arg for argument in (*found.args, *found.kwonlyargs)]


def test_marlin_skips_ids_that_are_not_here_by_itself_or_with_an_expert_map():
    """And asks of the map no more than whether there is one."""
    fused = function(FUSED, "fused_marlin_moe")
    by_itself = "has_inactive_prefix_count" in arguments(GEMM, "moe_wna16_marlin_gemm")
    if by_itself:
        assert "zero_inactive_output=True" in fused, moved("rows of the id -1", "marlin_runner")
        assert "return_inactive_prefix_count=" in fused, moved("the id -1", "marlin_runner")
    else:
        assert "is_ep=expert_map is not None" in fused, moved("expert_map", "marlin_runner")
        uses = [line.strip() for line in fused.splitlines() if "expert_map" in line]
        reads = [line for line in uses if "expert_map[" in line or "(expert_map" in line]
        assert reads == [], moved("what expert_map is read for", "marlin_runner")
        # Rows that no expert computes count as nothing.
        assert "intermediate_cache13 = torch.zeros(" in fused, moved("cache", "marlin_runner")
    runner = source_of(RUNNER)
    assert "    expert_map: Optional[torch.Tensor] = None" in runner, moved("expert_map", "runner")
    assert "expert_map=quant_info.expert_map" in runner, moved("expert_map", "marlin_runner")


def test_ktd_finds_out_which_of_the_two_it_is():
    """By what the kernel's function takes."""
    marlin = pytest.importorskip("ktd.sgl.marlin_runner", reason="torch is not installed")
    try:
        found = marlin.skips_by_itself()
    except ImportError as error:
        pytest.skip(f"this SGLang has no Marlin kernels here: {error}")
    assert found is ("has_inactive_prefix_count" in arguments(GEMM, "moe_wna16_marlin_gemm"))


@pytest.mark.parametrize(
    ("module", "kernel"), [("gptq_kernels", "GPTQMarlinMoEKernel"), ("awq_kernels", "AWQMoEKernel")]
)
def test_kernels_of_gptq_and_awq_ask_the_runner_that_they_hold(module, kernel):
    """It is replaced by one that is told an expert map."""
    apply = function(f"{KERNELS}.{module}", kernel, "apply")
    assert "self.runner.run(dispatch_output, quant_info)" in apply, moved(kernel, "marlin_runner")
    assert "expert_map" not in apply, moved(f"expert_map of {kernel}", "marlin_runner")


def test_w4a16_on_marlin_takes_the_expert_map_from_the_layers_dispatcher():
    """It goes past the runner."""
    apply = function(W4A16, "CompressedTensorsWNA16MoE", "apply_weights")
    assert "expert_map = layer.dispatcher.local_expert_mapping" in apply, moved(
        "local_expert_mapping", "marlin_runner"
    )


@pytest.mark.parametrize(
    ("module", "scheme"),
    [("gptq.schemes.gptq_moe", "GPTQMarlinMoEScheme"), ("awq.schemes.awq_moe", "AWQMoEScheme")],
)
def test_schemes_of_gptq_and_awq_hold_their_kernel(module, scheme):
    """And take no runner but the one that they choose."""
    text = source_of(f"{SCHEMES}.{module}")
    assert "self.kernel = " in text, moved(f"{scheme}.kernel", "converted_slots")
    assert "self.kernel.process_weights_after_loading(layer)" in text, moved(scheme, "one_expert")
    created = text + source_of(f"{KERNELS}.{module.partition('.')[0]}_kernels")
    assert "assert get_moe_runner_backend().is_auto()" in created, moved(scheme, "cuda_formats")


def test_w4a16_is_on_triton_if_that_was_asked_for_and_filters_there():
    """Its slots are host rows under another type."""
    text = source_of(f"{SCHEMES}.compressed_tensors.compressed_tensors")
    assert "moe_backend.is_triton()" in text, moved("CompressedTensorsWNA16TritonMoE", "gpu_slots")
    info = function(W4A16, "CompressedTensorsWNA16TritonMoE", "get_triton_quant_info")
    assert "use_int4_w4a16=True" in info, moved("get_triton_quant_info", "gpu_slots")
    kernel = function(
        "sglang.kernels.ops.moe.fused_moe_triton_kernels", "fused_moe_kernel_gptq_awq"
    )
    filters = re.search(r"if (filter_expert and )?off_experts == -1", kernel)
    assert filters, moved("the id -1", "gpu_slots")


def test_experts_are_rearranged_one_by_one():
    """So a layer of one expert gives what a slot holds."""
    scales = function(f"{SCHEMES}.marlin_utils", "marlin_moe_permute_scales")
    zeros = function(f"{SCHEMES}.marlin_utils", "moe_awq_to_marlin_zero_points")
    weights = function(f"{KERNELS}.gptq_kernels", "gptq_marlin_moe_repack")
    for source in (scales, zeros, weights):
        assert "for e in range(num_experts):" in source, moved("repacking", "one_expert")


def test_schemes_that_turn_a_checkpoint_round_are_known_by_their_class():
    """ktd shows the loader another one, so that host memory is as the checkpoint."""
    loader = source_of("sglang.srt.layers.moe.fused_moe_triton.layer")
    assert "method = self.scheme" in loader, moved("FusedMoE.scheme", "hybrid_method")
    assert "method.__class__.__name__\n                in [\n" in loader, moved(
        "the transposed schemes", "hybrid_method"
    )
