"""What MXFP4 experts in slots take from SGLang, read from its source, so no GPU is needed."""

import pytest

from ktd.sgl import seam
from tests.sgl.test_contract import moved
from tests.sgl.test_gpu_contract import function, source_of

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("sglang", reason="this is about SGLang's source")

METHOD = "sglang.srt.layers.quantization.mxfp4"
ON_MARLIN = "sglang.srt.layers.quantization.mxfp4_marlin_moe"
REPACK = "sglang.srt.layers.quantization.marlin_utils_fp4"
RUNNER = "sglang.srt.layers.moe.moe_runner.marlin"
FUSED = "sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe"
LAYER = "sglang.srt.layers.moe.fused_moe_triton.layer"


def test_the_runner_is_marlin_where_that_was_asked_for():
    """On Hopper as well: SGLang chooses another one by itself only if none is given."""
    text = source_of(METHOD)
    assert "self.use_marlin = get_moe_runner_backend().is_marlin()" in text, moved(
        "use_marlin", "expert_format"
    )
    laid_out = function(METHOD, "Mxfp4MoEMethod", "process_weights_after_loading")
    assert "prepare_moe_mxfp4_layer_for_marlin(layer)" in laid_out, moved("Marlin", "one_expert")
    assert "is_sm90" in laid_out, moved("the GPUs that MXFP4 runs on", "cuda_formats")
    assert "check_moe_marlin_supports_layer(layer, 32, allow_tile_padding=True)" in laid_out
    apply = function(METHOD, "Mxfp4MoEMethod", "apply")
    assert "return self._apply_marlin(layer, dispatch_output)" in apply, moved("Marlin", "slots")


def test_sizes_that_marlin_takes_are_those_that_ktd_checks():
    """Otherwise SGLang ends with a sentence that names neither."""
    check = function(
        "sglang.srt.layers.quantization.marlin_utils", "check_moe_marlin_supports_layer"
    )
    assert "hidden_size % 64 == 0 and intermediate_size_per_partition % group_size == 0" in check, (
        moved("sizes of MXFP4", "cuda_formats")
    )


def test_the_method_declares_experts_of_the_layers_number_padded():
    """The configuration comes with the runner, which is made later."""
    declared = function(METHOD, "Mxfp4MoEMethod", "create_weights")
    assert "layer.num_local_experts," in declared, moved("num_local_experts", "sglang_slots")
    assert "hidden_size = round_up(hidden_size, 256)" in declared, moved("padding", "quantisation")
    assert "intermediate_size_per_partition, 128\n" in declared, moved("padding", "quantisation")
    runner = function(METHOD, "Mxfp4MoEMethod", "create_moe_runner")
    assert "self.moe_runner_config = moe_runner_config" in runner, moved("settle", "cuda_formats")


def test_experts_are_rearranged_one_by_one():
    """So a layer of one expert gives what a slot holds; rows of gate and up are set apart first."""
    text = source_of(REPACK)
    assert "for i in range(num_experts):" in text, moved("repacking", "one_expert")
    apart = function(REPACK, "deinterleave_moe_mxfp4_w13_for_marlin")
    assert "w13.view(e, n // 2, 2, k).permute(0, 2, 1, 3)" in apart, moved("w13", "padding")


def test_the_runner_is_told_biases_and_the_dispatchers_map():
    """With a map it asks the same object how many experts there are."""
    info = function(ON_MARLIN, "build_marlin_moe_quant_info")
    for taken in (
        'getattr(layer.dispatcher, "local_expert_mapping", None)',
        "layer.dispatcher.num_experts if expert_map is not None else -1",
        'w13_bias=getattr(layer, "w13_weight_bias", None)',
    ):
        assert taken in info, moved(taken, "marlin_runner")
    padded = function(METHOD, "Mxfp4MoEMethod", "_apply_marlin")
    assert "x, (0, self.hidden_pad)" in padded, moved("tokens are padded", "converted_slots")


def test_the_runner_computes_what_the_pool_computes():
    """A clamp with alpha, which adds one to up; or a limit alone. It scales no sum of MXFP4's."""
    text = source_of(RUNNER)
    assert "gemm1_alpha=runner_config.gemm1_alpha" in text, moved("alpha", "cuda_formats")
    assert "else runner_config.swiglu_limit" in text, moved("the limit", "cuda_formats")
    fused = function(FUSED, "fused_marlin_moe")
    assert "if clamp_limit is None:\n            raise ValueError" in fused, moved(
        "alpha without a limit", "cuda_formats"
    )
    assert "mul_topk_weights=True" in fused, moved("weights of pairs", "cuda_formats")


def test_gpt_oss_hands_over_all_experts_of_a_layer_as_they_are_stored():
    """In one tensor, which its loader copies into the beginning of a parameter."""
    loader = function(LAYER, "FusedMoE", "weight_loader")
    assert "param.data[:, :dim1, :dim2].copy_(loaded_weight)" in loader, moved("MXFP4", "padding")
    module, name = seam.LOAD_GPT_OSS.rsplit(".GptOssForCausalLM.", 1)
    load = function(module, "GptOssForCausalLM", name)
    assert "weight.cuda()" in load or "weight.to(weight_device)" in load, moved(
        "how experts go to the GPU", "host_views"
    )
    assert "expert_id=None" in load, moved("whole tensors", "expert_loader")
