"""A whole run: ceilings first, then every shape, format, kernel set, thread and token count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ktd.bench.kernels.busy_core import BusyCore
from ktd.bench.kernels.calls import Calls
from ktd.bench.kernels.catalogue import choose_formats, choose_isas
from ktd.bench.kernels.ceilings import HostCeilings
from ktd.bench.kernels.cell import CellMeasurement
from ktd.bench.kernels.host import Host
from ktd.bench.kernels.layers import CACHES, LayerSet
from ktd.bench.kernels.overhead import Overhead
from ktd.bench.kernels.result import Report, Result
from ktd.bench.kernels.torch_experts import TorchExperts
from ktd.errors import ConfigError, DoesNotFit
from ktd.experts.pool import ExpertPool
from ktd.experts.weights import WeightFormat
from ktd.shapes.moe import MoeShape

_FEWEST_BYTES = 256 << 20  # of the read loop, where caches are small
_TORCH_SHARE = 0.5  # of a cell's seconds
_TWO = 2

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure.

    Attributes:
        shapes: Layers to measure.
        formats: Names of formats; none: all that the kernels compute.
        isas: Names of kernel sets; none: the one that a pool would take.
        tokens: Token counts.
        threads: Thread counts; none: one for each core.
        seconds: For each cell.
        torch: Also measure torch.
        busy_core: Also measure with one core taken.
    """

    shapes: tuple[MoeShape, ...]
    formats: tuple[str, ...] = ()
    isas: tuple[str, ...] = ()
    tokens: tuple[int, ...] = (1, 4, 16)
    threads: tuple[int, ...] = ()
    seconds: float = 2.0
    torch: bool = True
    busy_core: bool = False


class KernelBench:
    """Runs one request.

    Args:
        request: What to measure.
        host: Where.
        progress: Told every few seconds what is being done.

    Raises:
        ConfigError: The request names what does not exist or cannot run here.
    """

    def __init__(self, request: Request, host: Host, progress: Progress) -> None:
        self._request = request
        self._host = host
        self._progress = progress
        self._isas = choose_isas(request.isas)
        self._formats = {isa: choose_formats(request.formats, isa) for isa in self._isas}
        cores = ExpertPool().threads
        self._threads = request.threads or (cores,)
        if max(self._threads) > cores:
            raise ConfigError(
                f"--threads {max(self._threads)} is more than the {cores} cores that this process "
                "may use"
            )
        if request.busy_core and min(self._threads) < _TWO:
            raise ConfigError("--busy-core takes one core of several: use --threads 2 or more")
        self._overheads: dict[str, Overhead] = {}
        self._results: list[Result] = []
        self._notes: list[str] = []
        self._torch_seconds: dict[int, float] = {}  # by tokens, of the shape at hand

    def run(self) -> Report:
        """Measures.

        Raises:
            DoesNotFit: A working set does not fit in memory.
        """
        size = max(CACHES * self._host.last_level_cache, _FEWEST_BYTES)
        self._ceilings = HostCeilings(size)
        self._ceilings.sweep(self._progress)
        table = self._ceilings.table
        self._progress(
            f"memory is read at {table.dram[table.threads] / 1e9:.1f} GB/s by {table.threads} of "
            f"{self._ceilings.threads} threads"
        )
        for shape in self._request.shapes:
            self._torch_seconds = {}
            for weight_format in _in_order(self._formats):
                self._measure_format(shape, weight_format)
        return Report(
            host=self._host,
            ceilings=table,
            on_core=self._ceilings.on_core,
            overheads=self._overheads,
            results=tuple(self._results),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def _measure_format(self, shape: MoeShape, weight_format: WeightFormat) -> None:
        layers = self._layers(shape, weight_format)
        if layers.plan.experts < shape.experts:
            self._notes.append(
                f"{shape.name} in {weight_format}: {layers.plan.experts} of {shape.experts} "
                "experts for want of memory, so many tokens meet fewer distinct ones than a model's"
            )
        for isa in self._isas:
            if weight_format not in self._formats[isa]:
                continue
            for threads in self._threads:
                pool = ExpertPool(threads=threads, isa=isa)
                for tokens in self._request.tokens:
                    self._measure_cell(pool, layers, tokens)
                if isa not in self._overheads and threads == max(self._threads):
                    self._overheads[isa] = Overhead.of(pool, 0, shape.hidden, shape.top_k)
        if self._request.torch:
            self._measure_torch(layers)

    def _measure_cell(self, pool: ExpertPool, layers: LayerSet, tokens: int) -> None:
        calls = Calls(pool, layers, tokens, cache=self._host.last_level_cache)
        figures = CellMeasurement(calls, self._ceilings).run(self._request.seconds)
        result = Result(
            shape=layers.shape,
            format=layers.format.value,
            isa=pool.isa,
            threads=pool.threads,
            tokens=tokens,
            plan=layers.plan,
            figures=figures,
            busy=BusyCore.measure(calls) if self._request.busy_core else None,
        )
        self._results.append(result)
        self._progress(
            f"{layers.shape.name} {layers.format} {pool.isa}, {pool.threads} threads, {tokens} "
            f"tokens: {figures.median * 1e3:.2f} ms, {figures.floor_fraction.median:.2f} of floor"
        )

    def _measure_torch(self, layers: LayerSet) -> None:
        """Torch's bf16 path once for each token count of a shape, for all its formats."""
        missing = [tokens for tokens in self._request.tokens if tokens not in self._torch_seconds]
        if missing and not self._time_torch(layers, missing):
            return
        for index, row in enumerate(self._results):
            if row.shape is layers.shape and row.torch_seconds is None:
                seconds = self._torch_seconds.get(row.tokens)
                self._results[index] = replace(row, torch_seconds=seconds)

    def _time_torch(self, layers: LayerSet, tokens: list[int]) -> bool:
        bf16 = layers
        if layers.format is not WeightFormat.BF16:
            try:
                bf16 = self._layers(layers.shape, WeightFormat.BF16)
            except DoesNotFit as error:
                self._notes.append(f"torch was not measured: {error}")
                return False
            if bf16.plan.experts < layers.plan.experts:
                self._notes.append(
                    f"torch was not measured on {layers.shape.name}: its bf16 weights do not fit "
                    "beside the others"
                )
                return False
        torch_experts = TorchExperts(bf16)
        for count in tokens:
            calls = Calls(ExpertPool(threads=1), bf16, count, cache=self._host.last_level_cache)
            self._progress(f"{layers.shape.name}, torch in bf16, {count} tokens")
            self._torch_seconds[count] = torch_experts.median(
                calls, self._request.seconds * _TORCH_SHARE
            )
        return True

    def _layers(self, shape: MoeShape, weight_format: WeightFormat) -> LayerSet:
        return LayerSet.make(
            shape,
            weight_format,
            cache=self._host.last_level_cache,
            available=Host.read().available,
            progress=self._progress,
        )


def _in_order(formats: dict[str, tuple[WeightFormat, ...]]) -> list[WeightFormat]:
    """Every format of any kernel set, once."""
    return list(dict.fromkeys(name for chosen in formats.values() for name in chosen))
