"""The budget that fits, for a start, for an operator, and for a model that nobody serves yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ktd.app.device import detect_device
from ktd.app.sglang_words import DEFAULT_KV_TOKENS, count_given
from ktd.config.settings import Settings
from ktd.errors import EngineNotReady, ModelUnsupported
from ktd.model.device_memory import device_bytes
from ktd.model.facts import ModelFacts, read_facts
from ktd.model.fit import Demand, Fit, fit_before_start, fit_while_running
from ktd.model.memory import HostMemory
from ktd.model.source import folder_or_id
from ktd.placement.manager import PlacementManager


def free_bytes(device: str, ranks: int) -> int:
    """Memory that slots can be in."""
    return HostMemory.read().available if device == "cpu" else device_bytes(ranks, free=True)


def fit_for_start(facts: ModelFacts, settings: Settings, device: str) -> Fit:
    """What ``--gpu-experts-ratio auto`` takes under these settings, on this host, now."""
    tokens = count_given(settings.sglang_args, "--max-total-tokens", DEFAULT_KV_TOKENS)
    demand = Demand(kv_tokens=tokens, ranks=settings.tp, device=device)
    return fit_before_start(facts, demand, free_bytes(device, settings.tp))


def fit_of_model(
    model: str, *, device: str, tp: int, kv_tokens: int | None, mapped: bool = False
) -> Fit:
    """For a model that nobody serves yet, as `ktd placement fit MODEL` asks it.

    Args:
        model: Its folder.
        device: ``"auto"`` or a device.
        tp: Tensor-parallel ranks.
        kv_tokens: Tokens that the KV cache must hold; None: what ktd gives SGLang.
        mapped: Experts are used from the page cache.

    Raises:
        ModelUnsupported: it is no folder of a model that can be served here.
    """
    folder = folder_or_id(model)
    if isinstance(folder, str):
        raise ModelUnsupported(
            f"{model} is not a folder here; download it first, or let `ktd serve` do that and ask "
            "`ktd placement fit` without MODEL."
        )
    where = detect_device(device)
    demand = Demand(kv_tokens=kv_tokens or DEFAULT_KV_TOKENS, ranks=tp, device=where)
    facts = replace(read_facts(folder, device=where), mapped=mapped)
    return fit_before_start(facts, demand, free_bytes(where, tp))


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
        return fit_while_running(
            facts, slots, self._device, free_bytes(self._device, self._settings.tp)
        )
