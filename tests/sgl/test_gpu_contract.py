"""SGLang internals that the path on a GPU relies on; read from its source, so no GPU is needed."""

import ast
import textwrap
from pathlib import Path

import pytest

from ktd.sgl import seam
from tests.sgl.test_contract import moved, parameters

pytestmark = pytest.mark.filterwarnings("ignore")
sglang = pytest.importorskip("sglang", reason="this is about SGLang's source")


def source_of(module: str) -> str:
    """Text of a module that may not be importable without a GPU."""
    relative = module.removeprefix("sglang.").replace(".", "/") + ".py"
    return (Path(sglang.__path__[0]) / relative).read_text()


def function(module: str, *names: str) -> str:
    """Source of a function, by the classes around it and its name."""
    text = source_of(module)
    body = ast.parse(text).body
    for name in names:
        found = [n for n in body if getattr(n, "name", None) == name]
        assert found, moved(f"{module}.{'.'.join(names)}", "seam")
        body = getattr(found[0], "body", [])
    lines = text.splitlines()[found[0].lineno - 1 : found[0].end_lineno]
    return textwrap.dedent("\n".join(lines))


def test_results_pass_one_method_with_the_event_behind_their_copy():
    """An unanswered layer ends the engine there, before a token of that step is handed out."""
    module, _, path = seam.SCHEDULER_RESULTS.partition(".Scheduler.")
    results = function(module, "Scheduler", path)
    arguments = [argument.arg for argument in ast.parse(results).body[0].args.args]
    assert arguments[:3] == ["self", "batch", "result"], moved(seam.SCHEDULER_RESULTS, "seam")
    run_batch = function(module, "Scheduler", "run_batch")
    assert "batch_result.copy_done = " in run_batch, moved("copy_done", "seam")


def test_steps_run_on_the_forward_stream_when_scheduling_overlaps():
    """Tables change by work enqueued there, between two launches."""
    run_batch = function("sglang.srt.managers.scheduler", "Scheduler", "run_batch")
    assert "if self.enable_overlap:" in run_batch, moved("Scheduler.enable_overlap", "cuda_side")
    assert "with self.forward_stream_ctx:" in run_batch, moved("forward_stream", "cuda_side")
    assert "self.device_module.stream(" in source_of("sglang.srt.managers.scheduler")


def test_graphs_are_replayed_below_the_hooked_forward():
    """The number of real rows is written there, on the stream of the replay."""
    source = source_of("sglang.srt.model_executor.model_runner")
    assert "self.decode_cuda_graph_runner" in source, moved("the decode graph runner", "seam")
    load = function(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner",
        "load_batch",
    )
    assert "raw_bs = forward_batch.batch_size" in load, moved("rows of a decode graph", "seam")


def test_the_triton_runner_skips_ids_that_are_not_here():
    """It filters unless it has as many local experts as experts, and copies nothing in place."""
    runner = source_of("sglang.srt.layers.moe.moe_runner.triton")
    assert "self.config.num_experts != self.config.num_local_experts" in runner, moved(
        "filter_expert", "sglang_slots"
    )
    fused = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe"
    assert "filter_expert" in function(fused, "fused_experts"), moved("filter_expert", fused)


def test_layers_say_by_what_their_sum_is_multiplied():
    """The pool multiplies its share by the same factor as the runner."""
    text = source_of("sglang.srt.layers.moe.fused_moe_triton.layer")
    for name in ("should_fuse_routed_scaling_factor_in_topk", "self.top_k ="):
        assert name in text, moved(name, "limits")
    assert "routed_scaling_factor" in source_of("sglang.srt.layers.moe.moe_runner.base")


@pytest.mark.parametrize("name", ["chunked_prefill_size", "disable_prefill_cuda_graph"])
def test_arguments_that_ktd_reads_or_sets_exist(name):
    """The largest prefill step sizes the channel; prefills are never captured."""
    from sglang.srt.server_args import ServerArgs

    assert name in parameters(ServerArgs), moved(name, "server_arguments")


def test_layers_know_how_their_method_for_bf16_is_made():
    """Slots of FP8 experts that are quantised at load are computed by that method."""
    layer = function("sglang.srt.layers.moe.fused_moe_triton.layer", "FusedMoE", "__init__")
    before, _, _ = layer.partition("self.quant_method.create_weights(")
    for name in ("use_triton_kernels", "use_flashinfer_trtllm_moe"):
        assert f"self.{name} =" in before, moved(name, "sglang_slots")
    made = function(
        "sglang.srt.layers.quantization.unquant", "UnquantizedFusedMoEMethod", "__init__"
    )
    arguments = [argument.arg for argument in ast.parse(made).body[0].args.args]
    assert arguments[1:3] == ["use_triton_kernels", "use_flashinfer_trtllm_moe"]
