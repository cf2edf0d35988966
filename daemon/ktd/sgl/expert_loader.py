"""Loads one layer's experts into host memory, past SGLang's own parameters.

SGLang's models look parameters up by name and call the ``weight_loader`` they find on them. The
slot parameters of a hybrid layer carry this module's loader, which hands SGLang's own loader a
host tensor for all experts instead: SGLang still does what it knows about the format (which shard,
which rows of it belong to this rank), and no expert is ever in device memory except in a slot.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor
from ktd.experts.store import HostStore
from ktd.experts.weights import WeightFormat
from ktd.sgl.expert_format import ExpertFormat
from ktd.sgl.host_parameter import HostParameter
from ktd.sgl.mapped_parameter import MappedParameter, Mapper
from ktd.sgl.quantiser import Quantiser, Source
from ktd.sgl.weight_reader import WeightReader

WeightLoader = Callable[..., None]
# Parameter, expert, shard.
_Shard: TypeAlias = tuple[str, int | None, str | None]


class LayerTemplate(nn.Module):
    """Stands in for a layer while SGLang's method lists its parameters on the meta device.

    Whatever the method reads from the layer comes from the real one.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Not registered as a submodule: its parameters are not this module's.
        object.__setattr__(self, "_layer", layer)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)


class Place(Protocol):
    """Where the shards of one parameter go; called from several threads."""

    def begin(self, shard: str | None) -> nn.Parameter:
        """What SGLang's loader is to write one shard of any expert into; may wait.

        None stands for all shards of all experts.
        """
        ...

    def arrived(self, parameter: nn.Parameter, expert: int | None, shard: str | None) -> None:
        """The shard of this expert is in what :meth:`begin` gave."""
        ...

    def end(self) -> None:
        """Nothing is written for one :meth:`begin` any more, whether or not it arrived."""
        ...

    def tensors(self, name: str) -> Mapping[str, ExpertTensor]:
        """Host tensors ``[E, …]`` by name, for a parameter that is called ``name``."""
        ...


class ExpertLoader:
    """Destination of all shards of one layer.

    Args:
        template: Meta parameters for all E experts, as SGLang's method wants them.
        store: Where host memory comes from.
        load: SGLang's own ``weight_loader`` of the layer.
        loaded: Called with the bytes of each shard that has arrived, from any thread.
        reader: Where the tensors come from, so that what SGLang copies is read in its threads; None
            when they come from elsewhere.
        place: Makes the memory of a tensor appear where it will be read; told how many matrices an
            expert has in it. None leaves that to whoever writes first.
        quantiser: Quantises what comes; None: host memory is as SGLang's parameters are.
        source: What comes, for the quantiser; None: bf16. Scales of the checkpoint, a
            thousandth of its bytes, are kept beside; weights wait for theirs.
        mapper: Makes parameters whose bytes stay in the checkpoint's files; None: all are copied.

    Every parameter is complete when each shard of each expert has come: gate ("w1") and up ("w3")
    of those called ``w13_…``, down ("w2") of ``w2_…``. A checkpoint that keeps all experts of a
    layer in one tensor sends it without an expert and a shard.
    """

    def __init__(
        self,
        template: Mapping[str, nn.Parameter],
        *,
        store: HostStore,
        load: WeightLoader,
        loaded: Callable[[int], None],
        reader: WeightReader | None = None,
        place: Callable[[torch.Tensor, int], None] | None = None,
        quantiser: Quantiser | None = None,
        source: ExpertFormat | None = None,
        mapper: Mapper | None = None,
    ) -> None:
        self._load = load
        self._loaded = loaded
        self._reader = reader
        self._reads: list[Future[None]] = []
        self._lock = threading.Lock()
        self._arrived: set[_Shard] = set()
        self._names: dict[int, str] = {}
        self.template = dict(template)
        self._places: dict[str, Place] = {}
        self._sizes: dict[str, int] = {}
        self._mapped: dict[str, MappedParameter] = {}
        self._scales: dict[str, HostParameter] = {}
        self._scale_of: dict[str, str] = {}
        self._waiting: dict[_Shard, Callable[[], None]] = {}
        if quantiser is not None:
            self._quantise(quantiser, source)
            return
        for name, meta in template.items():
            shards = _shards_of(name)
            mapped = mapper.parameter(name, meta, len(shards)) if mapper is not None else None
            if mapped is not None:
                self._places[name] = self._mapped[name] = mapped
                continue
            tensor = store.allocate(tuple(meta.shape), meta.dtype)
            if place is not None:
                place(tensor, len(shards))
            self._places[name] = HostParameter(meta, tensor)

    def _quantise(self, quantiser: Quantiser, source: ExpertFormat | None) -> None:
        if source is not None:
            self._scale_of = source.scale_of
        for name in self._scale_of.values():
            meta = self.template[name]
            self._scales[name] = HostParameter(meta, torch.zeros(meta.shape, dtype=meta.dtype))
        for name, meta in self.template.items():
            if name in self._scales:
                continue
            scales = self._scales.get(self._scale_of.get(name, ""))
            comes = Source(
                WeightFormat.BF16 if source is None else source.weights,
                None if scales is None else scales.tensor,
            )
            self._places[name] = quantiser.parameter(meta, _shards_of(name), comes)

    @property
    def tensors(self) -> dict[str, ExpertTensor]:
        """Host tensors ``[E, …]`` by parameter name; scales of quantised ones beside them."""
        found: dict[str, ExpertTensor] = {}
        for name, place in self._places.items():
            found.update(place.tensors(name))
        return found

    @property
    def copied_bytes(self) -> int:
        """Bytes of them that are in memory of this process's own; known when all have come."""
        files = [self._places[name].tensors(name) for name in self._mapped]
        in_files = sum(map(_size, files)) - sum(p.copied_bytes for p in self._mapped.values())
        return self.num_bytes - in_files

    @property
    def num_bytes(self) -> int:
        """Bytes of all experts of this rank's shard."""
        return _size(self.tensors)

    def attach(self, name: str, slots: nn.Parameter) -> None:
        """Makes ``slots`` the parameter under which the model finds the experts of ``name``."""
        self._names[id(slots)] = name

    def __call__(
        self,
        param: nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str | None,
        expert_id: int | None,
    ) -> None:
        """SGLang's ``weight_loader`` signature; may be called from several threads."""
        name = self._names[id(param)]
        if name in self._scales:
            # Small, and what waits for it must not wait for a thread that reads.
            scales = self._scales[name].begin(shard_id)
            self._load(scales, loaded_weight, weight_name, shard_id, expert_id)
            self._scale_arrived((name, expert_id, shard_id))
            return

        def load() -> None:
            self._load_into(name, loaded_weight, weight_name, shard_id, expert_id)

        scale = self._scale_of.get(name)
        if scale is not None:
            with self._lock:
                if (scale, expert_id, shard_id) not in self._arrived:
                    self._waiting[scale, expert_id, shard_id] = load
                    return
        load()

    def _scale_arrived(self, shard: _Shard) -> None:
        with self._lock:
            self._arrived.add(shard)
            waiting = self._waiting.pop(shard, None)
        if waiting is not None:
            waiting()

    def _load_into(
        self,
        name: str,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str | None,
        expert_id: int | None,
    ) -> None:
        place = self._places[name]
        destination = place.begin(shard_id)

        def load(weight: torch.Tensor) -> None:
            self._load(destination, weight, weight_name, shard_id, expert_id)

        def arrived() -> None:
            place.arrived(destination, expert_id, shard_id)
            self._arrive(name, expert_id, shard_id)

        reads: list[Future[None]] = []
        try:
            if self._reader is None or self._reader.file_of(loaded_weight) is None:
                load(loaded_weight)
                arrived()
            else:
                mapped = self._mapped.get(name)
                loading = self._reader.load(
                    load, loaded_weight, arrived, mapped.keep if mapped else None
                )
                reads = loading.reads
                if mapped is not None and loading.rearranged:
                    mapped.rearranged(weight_name)
        finally:
            _when_done(reads, place.end)
        with self._lock:
            self._reads += reads

    def finish(self) -> None:
        """Waits for what is still being read.

        Raises:
            WeightsUnreadable: A weight file is damaged; the sentence names it.
        """
        with self._lock:
            reads, self._reads = self._reads, []
        for read in reads:
            read.result()
        for mapped in self._mapped.values():
            mapped.settle()

    def _arrive(self, name: str, expert_id: int | None, shard_id: str | None) -> None:
        with self._lock:
            whole = self._sizes.get(name)
            if whole is None:
                whole = self._sizes[name] = _size(self._places[name].tensors(name))
            if (name, expert_id, shard_id) in self._arrived:
                return
            self._arrived.add((name, expert_id, shard_id))
        experts = self.template[name].shape[0]
        parts = experts * len(_shards_of(name)) if expert_id is not None else 1
        self._loaded(whole // parts)

    def missing(self) -> str | None:
        """Names the first shard that the checkpoint did not have, or None."""
        for name, parameter in self.template.items():
            if (name, None, None) in self._arrived:
                continue
            kind = name.partition("_")[2]
            what = "" if kind == "weight" else f" of {kind}"
            for expert in range(parameter.shape[0]):
                for shard in _shards_of(name):
                    if (self._scale_of.get(name, ""), expert, shard) in self._waiting:
                        continue  # its scales are missing
                    if (name, expert, shard) not in self._arrived:
                        return f"shard {shard}{what} of expert {expert}"
        return None


def _shards_of(name: str) -> tuple[str, ...]:
    return ("w1", "w3") if name.startswith("w13_") else ("w2",)


def _size(tensors: Mapping[str, ExpertTensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())


def _when_done(reads: Sequence[Future[None]], call: Callable[[], None]) -> None:
    """Calls once when all of them have ended, in whatever way; at once if there is none."""
    if not reads:
        call()
        return
    left, lock = len(reads), threading.Lock()

    def ended(_read: Future[None]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            call()

    for read in reads:
        read.add_done_callback(ended)
