"""The budget that fits, for a start, for an operator, and for a model that nobody serves yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ktd.app.device import detect_device
from ktd.app.moe_runner import repacks, streams
from ktd.app.sglang_words import (
    CHUNK_FLAG,
    DEFAULT_KV_TOKENS,
    DEFAULT_PREFILL,
    FRACTION_FLAG,
    GRAPH_ROWS_FLAGS,
    GRAPHS_FLAG,
    KV_TYPE_FLAG,
    NO_GRAPHS,
    NO_GRAPHS_FLAGS,
    PREFILL_FLAG,
    SMALL_KV_TYPES,
    TOKENS_FLAG,
    count_given,
    fraction_given,
    gpus_of,
    number_given,
    text_given,
)
from ktd.config.settings import Settings
from ktd.enginespec import PREFILL_BUFFER_BYTES
from ktd.errors import EngineNotReady, ModelUnsupported
from ktd.model.demand import Demand
from ktd.model.device_memory import device_bytes
from ktd.model.facts import ModelFacts, read_facts
from ktd.model.fit import Fit, fit_before_start, fit_while_running
from ktd.model.memory import HostMemory
from ktd.model.quantised import FORMATS, quantised
from ktd.model.sglang_choice import default_chunk
from ktd.model.source import folder_or_id
from ktd.placement.manager import PlacementManager


def free_bytes(device: str, words: Sequence[str], ranks: int) -> int:
    """Memory that slots can be in.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        words: SGLang's command line.
        ranks: Tensor-parallel ranks.
    """
    if device == "cpu":
        return HostMemory.read().available
    return device_bytes(gpus_of(words, ranks), free=True)


def usual_chunk(device: str, words: Sequence[str], ranks: int) -> int:
    """Tokens of a step of prefill where SGLang's command line does not say."""
    return default_chunk(_gpu_bytes(device, words, ranks))


def least_demand(facts: ModelFacts, words: Sequence[str], *, device: str, ranks: int) -> Demand:
    """What an engine takes at least: a KV cache of the size given, or of one step of prefill.

    Args:
        facts: The model, and how its experts are kept in host memory.
        words: SGLang's command line.
        device: ``"cpu"`` or ``"cuda"``.
        ranks: Tensor-parallel ranks.
    """
    gpu_bytes = _gpu_bytes(device, words, ranks)
    chunk = number_given(words, CHUNK_FLAG)
    if chunk is None:
        chunk = default_chunk(gpu_bytes)
    elif chunk <= 0:
        chunk = count_given(words, PREFILL_FLAG, DEFAULT_PREFILL)
    kv_type = text_given(words, KV_TYPE_FLAG) or ""
    return Demand(
        kv_tokens=count_given(words, TOKENS_FLAG, chunk),
        ranks=ranks,
        device=device,
        gpu_bytes=gpu_bytes,
        chunk=chunk,
        buffer_bytes=PREFILL_BUFFER_BYTES if streams(facts, device) else 0,
        mem_fraction=fraction_given(words, FRACTION_FLAG),
        graph_rows=_graph_rows(words),
        kv_value_bytes=1 if kv_type.startswith(SMALL_KV_TYPES) else 2,
        repacks=repacks(facts, words, device),
    )


def usual_demand(facts: ModelFacts, words: Sequence[str], *, device: str, ranks: int) -> Demand:
    """The same with a KV cache to serve with, unless its size is given."""
    least = least_demand(facts, words, device=device, ranks=ranks)
    # Not below the least: what this leaves room for is never refused.
    usual = max(DEFAULT_KV_TOKENS, least.chunk if device != "cpu" else 0)
    return replace(least, kv_tokens=count_given(words, TOKENS_FLAG, usual))


def fit_for_start(
    facts: ModelFacts, settings: Settings, device: str, *, every_layer_streams: bool = False
) -> Fit:
    """What ``--gpu-experts-ratio auto`` takes under these settings, on this host, now."""
    demand = _settings_demand(facts, settings, device)
    demand = replace(demand, every_layer_streams=every_layer_streams)
    return fit_before_start(facts, demand, free_bytes(device, settings.sglang_args, settings.tp))


def fit_of_model(
    model: str,
    *,
    device: str,
    tp: int,
    kv_tokens: int | None,
    chunk: int | None = None,
    mapped: bool = False,
    cpu_format: str | None = None,
) -> Fit:
    """For a model that nobody serves yet, as `ktd placement fit MODEL` asks it.

    Args:
        model: Its folder.
        device: ``"auto"`` or a device.
        tp: Tensor-parallel ranks.
        kv_tokens: Tokens that the KV cache must hold; None: what ktd gives SGLang.
        chunk: Tokens of a step of prefill; None: SGLang chooses.
        mapped: Experts are used from the page cache.
        cpu_format: Of ``--cpu-expert-format``: what experts are quantised to while they are loaded;
            any other word, or None: they are not.

    Raises:
        ModelUnsupported: it is no folder of a model that can be served here, or so.
    """
    folder = folder_or_id(model)
    if isinstance(folder, str):
        raise ModelUnsupported(
            f"{model} is not a folder here; download it first, or let `ktd serve` do that and ask "
            "`ktd placement fit` without MODEL."
        )
    where = detect_device(device)
    given = ((TOKENS_FLAG, kv_tokens), (CHUNK_FLAG, chunk))
    words = [f"{flag}={value}" for flag, value in given if value is not None]
    facts = replace(read_facts(folder, device=where, ranks=tp), mapped=mapped)
    if cpu_format in FORMATS:
        facts = quantised(facts, cpu_format, ranks=tp, named="--cpu-expert-format")
    demand = usual_demand(facts, words, device=where, ranks=tp)
    return fit_before_start(facts, demand, free_bytes(where, words, tp))


def _gpu_bytes(device: str, words: Sequence[str], ranks: int) -> int:
    return 0 if device == "cpu" else device_bytes(gpus_of(words, ranks), free=False) // ranks


def _settings_demand(facts: ModelFacts, settings: Settings, device: str) -> Demand:
    return usual_demand(facts, settings.sglang_args, device=device, ranks=settings.tp)


def _graph_rows(words: Sequence[str]) -> int | None:
    off = any(flag in words for flag in NO_GRAPHS_FLAGS)
    if off or text_given(words, GRAPHS_FLAG) == NO_GRAPHS:
        return 0
    given = [count_given(words, flag, 0) for flag in GRAPH_ROWS_FLAGS]
    return max(given) or None


class RunningFit:
    """Satisfies the API's ``FitSource``: what the engine could have after a restart.

    Args:
        facts: The model, or None while nobody has looked at it.
    """

    def __init__(
        self,
        facts: Callable[[], ModelFacts | None],
        manager: PlacementManager,
        settings: Settings,
        device: str,
    ) -> None:
        self._facts = facts
        self._manager = manager
        self._settings = settings
        self._device = device

    def fit(self) -> Fit:
        """The fit as of now.

        Raises:
            EngineNotReady: the model was not looked at yet.
        """
        facts = self._facts()
        if facts is None:
            raise EngineNotReady("The model has not been looked at yet; wait for `ktd status`.")
        if not self._manager.ready:
            return fit_for_start(facts, self._settings, self._device)
        slots = self._manager.placement().shape.total_slots
        demand = _settings_demand(facts, self._settings, self._device)
        free = free_bytes(self._device, self._settings.sglang_args, self._settings.tp)
        return fit_while_running(facts, demand, slots, free)
