"""Every SGLang internal that ktd relies on: a failure names what moved and what used it."""

import dataclasses
import inspect
import os
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from ktd.sgl import platform, seam

pytestmark = pytest.mark.filterwarnings("ignore")


def moved(what: str, used_by: str) -> str:
    return f"SGLang moved {what}; ktd.sgl.{used_by} relies on it"


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "target",
    [
        seam.KT_WRAPPER,
        seam.KT_CONFIG,
        seam.SCHEDULER_INIT,
        seam.SCHEDULER_IDLE,
        seam.LOAD_MODEL,
        seam.EXPERT_MAPPING,
        seam.EXPERT_LOCATION,
        seam.FORWARD,
    ],
)
def test_every_hook_target_exists(target):
    """A hook on a name that is gone would be logged and ignored by SGLang."""
    owner, name = target.rsplit(".", 1)
    assert hasattr(pkgutil.resolve_name(owner), name), moved(target, "seam")


def test_hook_registry_has_the_four_kinds_and_replaces_classes():
    """The seam is installed through HookRegistry.register(target, hook, kind)."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    assert {"BEFORE", "AFTER", "AROUND", "REPLACE"} <= set(HookType.__members__), moved(
        "HookType", "seam"
    )
    assert parameters(HookRegistry.register)[:3] == ["target", "hook", "hook_type"], moved(
        "HookRegistry.register", "seam"
    )


def test_moe_layers_ask_the_seam_for_a_configuration_and_wrap_their_method():
    """FusedMoE must still call both replaced names, by those names."""
    from sglang.srt.layers.moe.fused_moe_triton import layer

    source = inspect.getsource(layer.FusedMoE.__init__)
    assert "create_kt_config_from_server_args(server_args, layer_id)" in source, moved(
        "the call of create_kt_config_from_server_args", "seam"
    )
    assert "KTEPWrapperMethod(gpu_method, kt_config)" in source, moved(
        "the construction of KTEPWrapperMethod", "seam"
    )
    assert "self.weight_loader" in source, moved(
        "FusedMoE's weight_loader keyword", "hybrid_method"
    )
    for name in ("moe_tp_rank", "moe_tp_size", "moe_ep_size", "moe_runner_config"):
        assert f"self.{name}" in source, moved(f"FusedMoE.{name}", "hybrid_method")


def test_weight_loader_takes_parameter_weight_name_shard_and_expert():
    """Models call the loader they find on a parameter; ours has the same signature."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    assert parameters(FusedMoE.weight_loader) == [
        "self",
        "param",
        "loaded_weight",
        "weight_name",
        "shard_id",
        "expert_id",
    ], moved("FusedMoE.weight_loader", "expert_loader")


def test_unquantised_method_creates_the_two_parameters_the_store_knows():
    """Gate and up rows in w13_weight, down rows in w2_weight, experts first."""
    import torch
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    assert parameters(UnquantizedFusedMoEMethod.create_weights)[:6] == [
        "self",
        "layer",
        "num_experts",
        "hidden_size",
        "intermediate_size_per_partition",
        "params_dtype",
    ], moved("UnquantizedFusedMoEMethod.create_weights", "hybrid_method")
    source = inspect.getsource(UnquantizedFusedMoEMethod.create_weights)
    assert 'register_parameter("w13_weight"' in source, moved("w13_weight", "expert_loader")
    assert 'register_parameter("w2_weight"' in source, moved("w2_weight", "expert_loader")
    assert torch.bfloat16.itemsize == 2


def test_torch_native_path_reads_slots_from_the_layer():
    """Without a GPU, slots are computed by moe_forward_native from the layer's parameters."""
    from sglang.srt.layers.moe import fused_moe_native
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    source = inspect.getsource(fused_moe_native.moe_forward_native)
    assert "layer.w13_weight[i]" in source, moved("moe_forward_native", "hybrid_method")
    native = inspect.getsource(UnquantizedFusedMoEMethod.forward_native)
    assert "moe_forward_native" in native, moved("forward_native", "hybrid_method")


def test_dispatch_and_combine_types_have_the_fields_that_apply_reads():
    """Fields are read by name, and replaced with _replace."""
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    assert {"hidden_states", "topk_output"} <= set(StandardDispatchOutput._fields), moved(
        "StandardDispatchOutput", "hybrid_method"
    )
    assert {"topk_ids", "topk_weights"} <= set(StandardTopKOutput._fields), moved(
        "StandardTopKOutput", "hybrid_method"
    )
    assert StandardCombineInput._fields == ("hidden_states",), moved(
        "StandardCombineInput", "hybrid_method"
    )


def test_runner_configuration_is_a_dataclass_with_the_fields_that_are_checked():
    """limits.py refuses what the kernels do not implement by these fields."""
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig

    fields = {field.name for field in dataclasses.fields(MoeRunnerConfig)}
    needed = {
        "num_local_experts",
        "inplace",
        "activation",
        "is_gated",
        "gemm1_alpha",
        "gemm1_clamp_limit",
        "apply_router_weight_on_input",
        "routed_scaling_factor",
        "num_fused_shared_experts",
    }
    assert needed <= fields, moved(f"MoeRunnerConfig: {sorted(needed - fields)}", "limits")


def test_model_runner_forward_takes_the_forward_batch_first():
    """Steps and tokens are counted around it."""
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
    from sglang.srt.model_executor.model_runner import ModelRunner

    assert parameters(ModelRunner.forward)[1] == "forward_batch", moved(
        "ModelRunner.forward", "seam"
    )
    assert hasattr(ForwardMode, "is_decode"), moved("ForwardMode.is_decode", "seam")
    fields = set(ForwardBatch.__annotations__)
    assert {"forward_mode", "batch_size", "input_ids"} <= fields, moved("ForwardBatch", "seam")


def test_rpc_reaches_a_scheduler_method_by_name_and_ends_in_a_barrier():
    """Control calls are methods that the plugin puts on Scheduler."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.scheduler import Scheduler

    source = inspect.getsource(Scheduler.handle_rpc_request)
    assert "getattr(self, recv_req.method)" in source, moved("handle_rpc_request", "seam")
    assert "barrier(" in source, moved("the barrier of handle_rpc_request", "collective")
    assert parameters(Engine.collective_rpc)[:2] == ["self", "method"], moved(
        "Engine.collective_rpc", "host"
    )


def test_a_sleeping_scheduler_wakes_for_rpc():
    """With --sleep-on-idle a swap must not wait for a request."""
    from sglang.srt.managers.scheduler import Scheduler

    source = inspect.getsource(inspect.getmodule(Scheduler))
    sleeper = source[source.index("IdleSleeper(") :][:400]
    assert "recv_from_rpc" in sleeper, moved("IdleSleeper's sockets", "collective")


def test_http_server_takes_its_state_from_what_the_host_sets():
    """The host does what _setup_and_run_http_server does, on a Unix socket."""
    from sglang.srt.entrypoints import http_server

    fields = {field.name for field in dataclasses.fields(http_server._GlobalState)}
    assert fields == {"tokenizer_manager", "template_manager", "scheduler_info"}, moved(
        "_GlobalState", "openai_app"
    )
    assert hasattr(http_server, "set_global_state"), moved("set_global_state", "openai_app")
    source = inspect.getsource(http_server.lifespan)
    for name in ("is_single_tokenizer_mode", "server_args", "warmup_thread_kwargs"):
        assert name in source, moved(f"app.{name}", "openai_app")
    warm_up = inspect.getsource(http_server._wait_and_warmup)
    assert "skip_server_warmup" in warm_up, moved("skip_server_warmup", "server_arguments")


def test_engine_keeps_what_the_application_needs():
    """Engine's attributes after construction."""
    from sglang.srt.entrypoints.engine import Engine

    source = inspect.getsource(Engine.__init__)
    for name in ("tokenizer_manager", "template_manager", "_scheduler_init_result"):
        assert f"self.{name} = " in source, moved(f"Engine.{name}", "openai_app")


def test_schedulers_die_with_their_parent():
    """When the host is killed, nothing of the engine may stay."""
    from sglang.srt.managers import detokenizer_manager, scheduler

    for module in (scheduler, detokenizer_manager):
        source = inspect.getsource(module)
        assert "kill_itself_when_parent_died" in source or "configure_scheduler" in source, moved(
            f"kill_itself_when_parent_died in {module.__name__}", "host"
        )


def test_processes_are_named_so_that_their_hellos_can_be_required():
    """The host requires a hello of every process whose title begins with sglang::."""
    from sglang.srt.managers import detokenizer_manager

    assert "sglang::detokenizer" in inspect.getsource(detokenizer_manager), moved(
        "process titles", "host"
    )


def test_the_shared_experts_gate_is_added_by_the_operator_that_ktd_replaces():
    """Its Triton kernel does not run without a GPU."""
    from sglang.kernels.ops.elementwise.elementwise import fused_gate_sigmoid_mul_add
    from sglang.srt.models import qwen2_moe

    from ktd.sgl.cpu_kernels import gate_sigmoid_mul_add

    assert parameters(fused_gate_sigmoid_mul_add) == parameters(gate_sigmoid_mul_add), moved(
        "fused_gate_sigmoid_mul_add", "cpu_kernels"
    )
    assert hasattr(qwen2_moe, "fused_gate_sigmoid_mul_add"), moved(
        "its use in qwen2_moe", "cpu_kernels"
    )


def test_signals_of_a_serving_process_go_to_a_class_that_the_host_replaces():
    """SGLang would drain by itself on SIGTERM and kill the host when a child ends."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    source = inspect.getsource(TokenizerManager)
    for use in (
        "self.signal_handler_class = ",
        "self.signal_handler_class(self)",
        ".sigterm_handler",
        ".running_phase_sigquit_handler",
    ):
        assert use in source, moved(use, "host")


def test_sglang_is_told_the_cores_of_ranks_by_a_variable():
    """Without it more ranks than NUMA nodes are refused."""
    from sglang.srt.utils import numa_utils

    source = inspect.getsource(numa_utils.init_threads_binding)
    assert "SGLANG_CPU_OMP_THREADS_BIND" in source, moved("SGLANG_CPU_OMP_THREADS_BIND", "cores")
    assert 'split("|")' in source, moved("its notation", "cores")


def test_every_refused_option_is_a_field_of_server_args():
    """A renamed option would no longer be refused (enable_paged_experts came after 0.5.17)."""
    from sglang.srt.server_args import ServerArgs

    from ktd.sgl.refused_options import REFUSED

    try:
        fields = {field.name for field in dataclasses.fields(ServerArgs)}
    except TypeError:
        fields = set(ServerArgs.__struct_fields__)
    # Each is in one of the two releases only.
    one_release = {"enable_paged_experts", "torchao_config"}
    missing = {option.field for option in REFUSED} - fields - one_release
    assert not missing, moved(f"ServerArgs fields {sorted(missing)}", "refused_options")


def test_platform_seam_selects_by_entry_point_name():
    """SGLANG_PLATFORM=ktd must find ktd's platform and give an out-of-tree one."""
    from sglang.srt.platforms import current_platform
    from sglang.srt.platforms.device_mixin import PlatformEnum

    assert PlatformEnum.OOT
    assert any(ep.name == "ktd" for ep in entry_points(group="sglang.srt.platforms"))
    assert current_platform.device_type in ("cpu", "cuda"), moved("current_platform", "platform")


def test_sglang_does_without_flashinfer_where_there_is_no_gpu():
    """Every process of an engine would spend seconds on importing it.

    In a process of its own: whoever imported SGLang first decides for the others.
    """
    program = (
        "import sys\n"
        "from sglang.srt.layers.quantization import fp4_utils\n"
        "assert fp4_utils.fp4_quantize is None\n"
        "assert not [name for name in sys.modules if name.startswith('flashinfer.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | platform.environment("cpu"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, moved("the import of flashinfer", "platform") + done.stderr
