"""What to start an engine with: settings, the model's facts and a placement become a spec."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import structlog

from ktd.app.evidence import StartEvidence
from ktd.app.fitting import fit_for_start, free_bytes, least_demand
from ktd.app.moe_runner import runner_words, streams
from ktd.config.settings import Settings
from ktd.engine.leftovers import new_engine_id
from ktd.engine.status import MemorySummary, ModelSummary
from ktd.enginespec import MMAP, Bench, EngineSpec
from ktd.errors import ConfigError, EngineFailed, KtdError
from ktd.model.device_needs import check_device_fits, piece_experts
from ktd.model.facts import ModelFacts, read_facts
from ktd.model.memory import HostMemory, cache_complaint, check_fits, needs_of
from ktd.model.quantised import FORMATS, quantised
from ktd.placement.budget import EVEN, Budget, budget_of, even_slots
from ktd.placement.ledger import DAEMON
from ktd.placement.manager import PlacementManager
from ktd.placement.model import Experts, ModelShape
from ktd.placement.strategies.registry import initial_placement, live_placement

_log = structlog.get_logger(__name__)

# Streaming a layer of qwen3-30b-a3b's shape over PCIe takes as long as 16 Xeon cores need for so
# many tokens of it (docs/results).
PREFILL_THRESHOLD = 1024
_FORMAT_SETTING = "cpu_expert_format"
_DEFERRAL = "max_deferred_experts_per_token"
DEFERRAL_WARNING = (
    "experts of low weight are added a layer late if the CPU computes them, which changes answers, "
    "and lets them depend on what is in slots."
)


@dataclass(frozen=True, slots=True)
class Start:
    """One start: the shape and placement in domain terms, and the spec made of them."""

    spec: EngineSpec
    shape: ModelShape
    experts: Experts
    origin: str
    actor: str = DAEMON


class EngineStarts:
    """Plans every start of the engine; the model is looked at once, before the first.

    Args:
        settings: What the daemon was told.
        device: ``"cpu"`` or ``"cuda"``.
        manager: Has the placement that was committed last.
        find_model: From MODEL to a folder; may download.
        evidence: What the first placement is chosen by.
        bench: What a bench asks of the engine.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: str,
        manager: PlacementManager,
        find_model: Callable[[Settings], Awaitable[Path]],
        evidence: StartEvidence,
        bench: Bench | None = None,
    ) -> None:
        self._settings = settings
        self._device = device
        self._manager = manager
        self._find_model = find_model
        self._evidence = evidence
        self._bench = bench
        self.facts: ModelFacts | None = None

    @property
    def served_name(self) -> str:
        """Under which name the OpenAI API offers the model."""
        return self._settings.served_model_name or self._settings.model

    async def next_start(self) -> Start:
        """What to start now.

        Raises:
            KtdError: the model or this host cannot do it, or a setting does not go with them.
        """
        first = self.facts is None
        facts = self.facts or await self._look_at_model()
        planned = self._manager.restarts.take()
        if planned is not None:
            shape, experts, origin = planned.shape, planned.experts, planned.origin
        else:
            shape, experts, origin = self._placement(facts)
        if first:
            # Not later: the memory of an engine that has just been killed may still be coming back.
            await asyncio.to_thread(self._check_memory, facts, shape)
            self.facts = facts
        actor = planned.actor if planned is not None else DAEMON
        return Start(self._spec(facts, shape, experts), shape, experts, origin, actor)

    def _check_memory(self, facts: ModelFacts, shape: ModelShape) -> None:
        slots, ranks = shape.total_slots, self._settings.tp
        needs = needs_of(facts, slots=slots, ranks=ranks, device=self._device)
        memory = HostMemory.read()
        check_fits(needs, memory)
        if (complaint := cache_complaint(needs, memory)) is not None:
            _log.warning("experts do not fit into the page cache", note=complaint)
        if self._device == "cpu":
            return
        words = self._settings.sglang_args
        demand = least_demand(facts, words, device=self._device, ranks=ranks)
        demand = replace(demand, every_layer_streams=self._keeps_cpu_path)
        free = free_bytes(self._device, words, ranks)
        check_device_fits(facts, demand, slots=slots, free=free)

    @property
    def _keeps_cpu_path(self) -> bool:
        return self._bench is not None and self._bench.keep_cpu_path

    def summaries(self) -> tuple[ModelSummary | None, MemorySummary | None]:
        """Model and memory for the status; None before the model was looked at."""
        facts = self.facts
        if facts is None:
            return None, None
        model = ModelSummary(
            path=str(facts.path),
            served_name=self.served_name,
            architecture=facts.architecture,
            expert_format=facts.expert_format,
            cpu_expert_format=facts.cpu_expert_format,
            num_layers=facts.num_layers,
            num_moe_layers=len(facts.moe_layers),
            num_experts=facts.num_experts,
            experts_per_token=facts.experts_per_token,
            hidden_size=facts.hidden_size,
            expert_intermediate_size=facts.expert_intermediate_size,
        )
        return model, MemorySummary(
            expert_bytes=facts.expert_bytes,
            total_experts=facts.total_experts,
            host_memory=self._settings.host_memory,
        )

    async def _look_at_model(self) -> ModelFacts:
        if find_spec("sglang") is None:
            raise EngineFailed(
                f"SGLang is not installed in {sys.prefix}: pip install 'ktd[engine]'."
            )
        folder = await self._find_model(self._settings)
        # Headers of hundreds of files are read.
        facts = await asyncio.to_thread(
            read_facts, folder, device=self._device, ranks=self._settings.tp
        )
        settings = self._settings
        facts = replace(facts, mapped=settings.host_memory == MMAP)
        self._check_deferral(facts)
        wanted = settings.cpu_expert_format
        if wanted not in FORMATS:
            return facts
        facts = quantised(facts, wanted, ranks=settings.tp, named=settings.named(_FORMAT_SETTING))
        _log.warning(
            "experts are quantised while they are loaded",
            note=f"{settings.named(_FORMAT_SETTING)} {wanted} is lossy against the checkpoint's "
            f"{facts.expert_format}: answers differ from it, in slots as on the CPU.",
        )
        return facts

    def _check_deferral(self, facts: ModelFacts) -> None:
        settings = self._settings
        deferred, name = settings.max_deferred_experts_per_token, settings.named(_DEFERRAL)
        if deferred == 0:
            return
        if self._device == "cpu":
            raise ConfigError(
                f"{name} is {deferred}, but on a host without a GPU nothing goes on while the CPU "
                "computes late experts: leave it out."
            )
        if deferred >= facts.experts_per_token:
            raise ConfigError(
                f"{name} is {deferred}, but a token of this model has {facts.experts_per_token} "
                "experts: give less."
            )
        _log.warning("experts are deferred", note=f"{name} {deferred}: {DEFERRAL_WARNING}")

    def _placement(self, facts: ModelFacts) -> tuple[ModelShape, Experts, str]:
        """The last committed placement, the stored one, or a fresh one."""
        try:
            current = self._manager.placement()
        except KtdError:
            current = None
        if current is not None:
            return current.shape, current.experts, current.origin
        settings = self._settings
        ratio = settings.gpu_experts_ratio
        budget = budget_of(
            len(facts.moe_layers),
            facts.num_experts,
            ratio=ratio if isinstance(ratio, float) else None,
            per_layer=None if ratio is not None else settings.num_gpu_experts,
            auto=lambda: self._automatic(facts),
        )
        stored = self._manager.restorable
        if stored is not None and not settings.placement_given:
            same_model = (
                stored.shape.moe_layers == facts.moe_layers
                and stored.shape.num_experts == facts.num_experts
                and stored.shape.expert_bytes == facts.expert_bytes
            )
            # A budget in ktd.toml or the environment counts when it is another one than before.
            configured = isinstance(ratio, float) or settings.num_gpu_experts is not None
            if same_model and not (configured and stored.shape.total_slots != budget.slots):
                _log.info("placement restored", revision=stored.revision, origin=stored.origin)
                return stored.shape, stored.experts, "restored"
        return self._fresh(facts, budget.slots, budget.notes)

    def _automatic(self, facts: ModelFacts) -> Budget:
        fit = fit_for_start(
            facts, self._settings, self._device, every_layer_streams=self._keeps_cpu_path
        )
        note = (
            f"--gpu-experts-ratio auto gives {fit.slots} of {fit.total_experts} experts a slot: "
            f"{' '.join(fit.assumptions)}"
        )
        return Budget(fit.slots, (note,))

    def _fresh(
        self, facts: ModelFacts, budget: int, notes: tuple[str, ...]
    ) -> tuple[ModelShape, Experts, str]:
        strategy = self._settings.expert_placement_strategy
        layers, num_experts = len(facts.moe_layers), facts.num_experts
        evidence = self._evidence.of(facts)
        if self._settings.live_slots == EVEN:
            slots, told = even_slots(layers, num_experts, budget)
            shape = self._shape(facts, slots)
            choice = live_placement(strategy, shape, evidence=evidence)
            notes = (*notes, *told)
        else:
            choice = initial_placement(strategy, layers, num_experts, budget, evidence=evidence)
            shape = self._shape(facts, tuple(map(len, choice.experts)))
        for note in (*notes, *choice.notes):
            _log.warning("placement", note=note)
        return shape, choice.experts, strategy

    def _shape(self, facts: ModelFacts, slots: tuple[int, ...]) -> ModelShape:
        return ModelShape(
            moe_layers=facts.moe_layers,
            num_experts=facts.num_experts,
            slots=slots,
            expert_bytes=facts.expert_bytes,
            full_stays_full=self._device != "cpu" and not self._keeps_cpu_path,
        )

    def _spec(self, facts: ModelFacts, shape: ModelShape, experts: Experts) -> EngineSpec:
        settings = self._settings
        engine_id = new_engine_id(settings.state_dir)
        threshold, pieces = self._prefill_threshold(facts), None
        if threshold is not None:
            pieces = piece_experts(facts, shape.total_slots, whole=self._keeps_cpu_path)
        return EngineSpec(
            engine_id=engine_id,
            runtime_dir=str(settings.runtime_dir / engine_id),
            model_path=str(facts.path),
            sglang_args=self._sglang_args(facts),
            device=self._device,
            moe_layers=shape.moe_layers,
            num_experts=shape.num_experts,
            experts_per_token=facts.experts_per_token,
            slots=shape.slots,
            initial=experts,
            cpu_threads=settings.cpu_threads,
            isa=settings.isa,
            swap_rate=settings.swap_rate,
            cpu_expert_format=facts.quantised.format if facts.quantised else None,
            prefill_cpu_share=settings.gpu_prefill_cpu_share,
            deferred_experts=settings.max_deferred_experts_per_token,
            prefill_threshold=threshold,
            prefill_experts=pieces,
            bench=self._bench,
            host_memory=settings.host_memory,
        )

    def _prefill_threshold(self, facts: ModelFacts) -> int | None:
        if self._device == "cpu":
            return None
        if streams(facts, self._device):
            given = self._settings.gpu_prefill_token_threshold
            return PREFILL_THRESHOLD if given is None else given
        if facts.quantised is not None:
            what = f"{self._settings.named(_FORMAT_SETTING)} {facts.quantised.format}"
            why = "the GPU computes with other bytes than host memory holds"
        elif facts.mapped:
            what = f"{self._settings.named('host_memory')} mmap"
            why = "the GPU cannot read experts from the page cache"
        else:
            what = f"{facts.expert_format} experts"
            why = "streaming them was not tried on a GPU yet"
        _log.warning(
            "long prefills are computed like others",
            note=f"{what}: {why}, so the CPU computes those of long prefills too.",
        )
        return None

    def _sglang_args(self, facts: ModelFacts) -> tuple[str, ...]:
        settings = self._settings
        return (
            "--served-model-name",
            self.served_name,
            "--tp-size",
            str(settings.tp),
            "--log-level",
            settings.log_level,
            # An idle scheduler would spin on a core, and fused shared experts bypass the seam.
            "--sleep-on-idle",
            "--disable-shared-experts-fusion",
            *runner_words(facts, self._device),
            *settings.sglang_args,
        )
