"""Every place where ktd holds on to SGLang, and what it does there.

SGLang's MoE layers ask ``create_kt_config_from_server_args`` for a configuration and, when they get
one, wrap their quantisation method in ``KTEPWrapperMethod(method, configuration)``. Both names are
replaced. DeepSeek and GLM models test for that class to multiply by ``routed_scaling_factor`` once
more, so its replacement builds something else than itself.
"""

from __future__ import annotations

import logging
import sys
import traceback
from dataclasses import replace
from functools import partial
from typing import Any

from ktd.enginespec import MMAP, EngineSpec, report_failure
from ktd.sgl import quantised_checkpoint

logger = logging.getLogger(__name__)

SCHEDULER_MODULE = "sglang.srt.managers.scheduler"
KT_WRAPPER = "sglang.srt.layers.moe.kt_ep_wrapper.KTEPWrapperMethod"
KT_CONFIG = "sglang.srt.layers.moe.kt_ep_wrapper.create_kt_config_from_server_args"
SCHEDULER_INIT = f"{SCHEDULER_MODULE}.Scheduler.__init__"
SCHEDULER_RESULTS = f"{SCHEDULER_MODULE}.Scheduler.process_batch_result"
SCHEDULER_IDLE = f"{SCHEDULER_MODULE}.Scheduler.on_idle"
LOAD_MODEL = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"
READ_WEIGHTS = "sglang.srt.model_loader.loader.safetensors_weights_iterator"
READ_WEIGHTS_IN_THREADS = (
    "sglang.srt.model_loader.loader.buffered_multi_thread_safetensors_weights_iterator"
)
EXPERT_MAPPING = "sglang.srt.layers.moe.fused_moe_triton.layer.FusedMoE.make_expert_params_mapping"
EXPERT_LOCATION = "sglang.srt.eplb.expert_location.ExpertLocationMetadata.logical_to_all_physical"
FORWARD = "sglang.srt.model_executor.model_runner.ModelRunner.forward"
LOAD_GPT_OSS = "sglang.srt.models.gpt_oss.GptOssForCausalLM._load_mxfp4_experts_weights"

_OUT_OF_MEMORY = (
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "cannot allocate",
    "has no memory for",
)
# A traceback that a library puts into its message is no sentence.
_SENTENCE_MAX = 500

# The method that the engine host calls through Engine.collective_rpc.
CALL = "ktd_call"


def install(spec: EngineSpec) -> None:
    """Registers the hooks in a scheduler process; elsewhere there is nothing to hook.

    SGLang starts a scheduler by unpickling a function of that module, before it loads plugins, so
    the module's presence tells the processes apart without importing it into the detokenizer.
    """
    if SCHEDULER_MODULE not in sys.modules:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from ktd.sgl import expert_location, gloo

    gloo.share_device()
    hooks = SchedulerHooks(spec)
    register = HookRegistry.register
    register(KT_CONFIG, hooks.layer_configuration, HookType.REPLACE)
    register(KT_WRAPPER, hooks.wrapper_class(), HookType.REPLACE)
    register(SCHEDULER_INIT, hooks.around_init, HookType.AROUND)
    register(SCHEDULER_IDLE, hooks.before_idle, HookType.BEFORE)
    register(READ_WEIGHTS, hooks.read_weights, HookType.REPLACE)
    register(READ_WEIGHTS_IN_THREADS, hooks.read_weights, HookType.REPLACE)
    register(EXPERT_MAPPING, hooks.after_expert_mapping, HookType.AFTER)
    register(EXPERT_LOCATION, expert_location.physical_experts, HookType.AROUND)
    register(LOAD_MODEL, hooks.after_load_model, HookType.AFTER)
    register(FORWARD, hooks.around_forward, HookType.AROUND)
    if spec.device != "cpu":
        register(SCHEDULER_RESULTS, hooks.before_results, HookType.BEFORE)
        register(LOAD_GPT_OSS, hooks.around_load_of_gpt_oss, HookType.AROUND)
    quantised_checkpoint.prepare(spec)
    if spec.device == "cpu":
        from ktd.sgl import cpu_kernels

        register(
            cpu_kernels.GATE_SIGMOID_MUL_ADD, cpu_kernels.gate_sigmoid_mul_add, HookType.REPLACE
        )
    # SGLang resolves the method of an RPC by name.
    setattr(sys.modules[SCHEDULER_MODULE].Scheduler, CALL, hooks.call)
    logging.getLogger(SCHEDULER_MODULE).addFilter(_is_not_a_ktd_call)


class SchedulerHooks:
    """The hooks of one scheduler process; owns its :class:`~ktd.sgl.rank.Rank`."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._rank: Any = None
        self._chunk: int | None = None
        self._reader: Any = None  # while a model is loaded
        self._complete = False  # from then on, a step that fails is no start that fails

    def layer_configuration(self, server_args: Any, layer_idx: int) -> int:
        """In place of SGLang's: a layer's configuration is its index.

        Some of SGLang's classes give every layer experts, whatever the configuration says
        (Qwen3-MoE and ``mlp_only_layers``); these would compute with memory nobody has written.
        """
        if layer_idx not in self._spec.moe_layers:
            sentence = (
                f"SGLang's class for this model has experts in layer {layer_idx}, where its"
                " config.json and checkpoint have none; it cannot be served"
            )
            report_failure(self._spec, "model", sentence)
            raise ValueError(sentence)
        chunk = getattr(server_args, "chunked_prefill_size", None)
        self._chunk = chunk if chunk is not None and chunk > 0 else None
        deterministic = getattr(server_args, "enable_deterministic_inference", False)
        if deterministic and self._spec.prefill_cpu_share:
            # It follows what passes took: the same prompt would be rounded in several ways.
            logger.info("deterministic inference: the CPU has no share of long prefills")
            self._spec = replace(self._spec, prefill_cpu_share=False)
        return layer_idx

    def wrapper_class(self) -> type:
        """In place of SGLang's wrapper: a class whose construction gives a hybrid method."""
        hooks = self

        class HybridWrapper:
            def __new__(cls, gpu_method: Any, kt_config: int) -> Any:
                return hooks.hybrid_method(gpu_method, kt_config)

        return HybridWrapper

    def hybrid_method(self, gpu_method: Any, layer_id: int) -> Any:
        """Builds the hybrid method of one layer; the first creates this process's state."""
        # torch-heavy, and only wanted where a model is built.
        from ktd.sgl.hybrid_method import HybridMoEMethod

        return HybridMoEMethod(gpu_method, self.rank_of, layer_id)

    def rank_of(self, layer: Any) -> Any:
        """This process's state, created with the first MoE layer: it knows the parallel sizes."""
        from ktd.sgl.rank import Rank

        if self._rank is None:
            self._rank = Rank(
                self._spec,
                rank=layer.moe_tp_rank,
                world_size=layer.moe_tp_size,
                chunk=self._chunk,
            )
        self._rank.reader = self._weight_reader()
        return self._rank

    def read_weights(self, files: list[str], *_: Any, **__: Any) -> Any:
        """In place of SGLang's iterators over safetensors files."""
        return self._weight_reader().tensors(files)

    def around_load_of_gpt_oss(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Experts pass from their files to host memory, and by no GPU."""
        from ktd.sgl.host_views import StayOnHost

        reader = self._weight_reader()
        with StayOnHost(lambda tensor: reader.file_of(tensor) is not None):
            return original(*args, **kwargs)

    def after_expert_mapping(self, mapping: Any, *_: Any, **__: Any) -> Any:
        """A model's list of its experts' names; it is walked for every tensor."""
        from ktd.sgl.expert_mapping import ExpertMapping

        return ExpertMapping(mapping, self._name_in_hand) if type(mapping) is list else mapping

    def _name_in_hand(self) -> str:
        return "" if self._reader is None else self._reader.name

    def _weight_reader(self) -> Any:
        from ktd.sgl.lost_pages import watch
        from ktd.sgl.weight_reader import WeightReader

        if self._reader is None:
            self._reader = WeightReader(
                mapped=self._spec.host_memory == MMAP, watch=partial(watch, self._spec)
            )
        return self._reader

    def around_init(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Turns whatever ends the scheduler's start into one sentence for the daemon."""
        try:
            result = original(*args, **kwargs)
            if self._rank is not None and self._rank.side is not None:
                self._rank.side.started()
            self._complete = True
        except Exception as error:
            kind, sentence = _explain(error)
            report_failure(self._spec, kind, sentence)
            raise
        return result

    def after_load_model(self, result: Any, runner: Any, *_: Any, **__: Any) -> Any:
        """The model is complete: say hello."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._rank is not None and not getattr(runner, "is_draft_worker", False):
            self._rank.recording.num_layers = runner.model_config.num_hidden_layers
            self._rank.say_hello(str(runner.device))
        return result

    def before_idle(self, *_: Any, **__: Any) -> None:
        """The scheduler's loop goes round."""
        if self._rank is not None:
            self._rank.idle()

    def before_results(self, _scheduler: Any, _batch: Any, result: Any, *_: Any, **__: Any) -> None:
        """A step's results are about to be used."""
        if self._rank is not None:
            self._rank.check_results(getattr(result, "copy_done", None))

    def around_forward(
        self, original: Any, runner: Any, forward_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Counts steps and tokens, and shows that a step is running."""
        rank = self._rank
        if rank is None:
            return original(runner, forward_batch, *args, **kwargs)
        rank.begin_step(rows=_rows(forward_batch), decode_rows=_decode_rows(forward_batch))
        if rank.recording.wants_ids:
            # Before the pass: a mixed batch calls itself an extending one after it.
            rank.recording.begin_pass(forward_batch)
        try:
            result = original(runner, forward_batch, *args, **kwargs)
        except Exception as error:
            # It ends the scheduler; IN_STEP stays, and SGLang tells its parent, but not why.
            if self._complete:
                sentence = f"rank {rank.rank}: a step failed: {_in_one_line(error)}"
                report_failure(self._spec, "internal", sentence)
            raise
        tokens = _rows(forward_batch)
        rank.end_step(tokens=tokens)
        if rank.recording.active:
            rank.recording.end_pass(runner.forward_pass_id, tokens)
        return result

    @property
    def call(self) -> Any:
        """``Scheduler.ktd_call(request)``."""
        hooks = self

        def ktd_call(scheduler: Any, request: str) -> None:
            side = hooks._rank.side
            if side is None:
                hooks._rank.call(request)
                return
            with side.steps_on(scheduler):
                hooks._rank.call(request)

        return ktd_call


def _rows(forward_batch: Any) -> int:
    """Tokens of a step, without padding."""
    if forward_batch.forward_mode.is_decode():
        return int(forward_batch.batch_size)
    return int(forward_batch.input_ids.shape[0])


def _decode_rows(forward_batch: Any) -> int | None:
    """How many rows of a step, at its end, decode a token; None: all of them.

    With ``--enable-mixed-chunk`` SGLang appends the running requests, one token each, to a chunk of
    prefill, and does not keep how many. A chunk of a single token before them counts as one more.
    """
    mode = forward_batch.forward_mode
    if mode.is_decode():
        return None
    if not mode.is_mixed():
        return 0
    lengths = forward_batch.extend_seq_lens_cpu
    return next((i for i, n in enumerate(reversed(lengths)) if n != 1), len(lengths))


def _explain(error: Exception) -> tuple[str, str]:
    """Failure kind and sentence for an exception that ended a scheduler's start."""
    from ktd.sgl.expert_format import FormatRefused
    from ktd.sgl.weight_file import WeightsUnreadable

    if isinstance(error, WeightsUnreadable | FormatRefused):
        return "model", str(error)
    text = _in_one_line(error)
    what = f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}{_where(error)}"
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY):
        return "memory", f"the engine ran out of memory while starting: {text or what}"
    if isinstance(error, ValueError | AssertionError | NotImplementedError):
        return "usage", f"SGLang refused to start: {text or what}"
    return "internal", f"SGLang's scheduler failed while starting: {what}"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_SENTENCE_MAX]


def _where(error: Exception) -> str:
    """File and line that raised an exception without words (a bare assert), or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f" in {last.name} ({last.filename.rpartition('/')[2]}:{last.lineno}: {last.line})"


def _is_not_a_ktd_call(record: logging.LogRecord) -> bool:
    """SGLang logs every RPC with its parameters at INFO; swaps would fill the log."""
    return f"handle_rpc_request: {CALL}" not in record.getMessage()
