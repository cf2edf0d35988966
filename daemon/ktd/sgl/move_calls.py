"""The control calls that move experts: prepare, publish, abort; one batch is copied at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ktd.sgl.copier import Copier
from ktd.sgl.expert_layer import EMPTY, ExpertLayer, MoveRefused, SlotCopy

# What is copied, and what is copied next.
MOST_OPEN = 2


@dataclass(slots=True)
class _Batch:
    """A batch that this rank prepared."""

    id: int
    copies: Sequence[SlotCopy]
    published: bool = False


class MoveCalls:
    """What the control channel may do to a rank's slots, between two steps.

    Args:
        rank: Which one, for sentences.
        layers: By index in the model.
        copier: Fills slots; its acknowledgement ends a batch that was prepared.
        moved: Called when a mapping has changed, before anything is copied.
        took: Called behind each call with the nanoseconds that it took.
    """

    def __init__(
        self,
        rank: int,
        layers: Mapping[int, ExpertLayer],
        copier: Copier,
        *,
        moved: Callable[[], None],
        took: Callable[[int], None],
    ) -> None:
        self._rank = rank
        self._layers = layers
        self._copier = copier
        self._moved = moved
        self._took = took
        # Those that are open, in order, and the last one that was published.
        self._batches: dict[int, _Batch] = {}

    def calls(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        """By their names in a request; they raise :class:`MoveRefused`."""
        calls = {"prepare": self._prepare, "publish": self._publish, "abort": self._abort}
        return {name: self._timed(call) for name, call in calls.items()}

    def _timed(self, call: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        def timed(fields: dict[str, Any]) -> None:
            began = time.monotonic_ns()
            try:
                call(fields)
            finally:
                self._took(time.monotonic_ns() - began)

        return timed

    def _prepare(self, fields: dict[str, Any]) -> None:
        batch_id = fields["batch"]
        if "publish" in fields:
            try:
                self._map(fields["publish"])
            except Exception as error:
                self._copier.refuse(batch_id, f"rank {self._rank}: {error}")
                raise
        opened = [batch.id for batch in self._batches.values() if not batch.published]
        if len(opened) >= MOST_OPEN:
            sentence = f"batches {opened[0]} and {opened[1]} are still open"
            self._copier.refuse(batch_id, f"rank {self._rank}: {sentence}")
            self._moved()
            raise MoveRefused(sentence)
        unmapped: list[tuple[ExpertLayer, int, int]] = []
        copies: list[SlotCopy] = []
        try:
            for layer_id, evict, load in fields["moves"]:
                layer = self._layer(layer_id)
                layer.check(evict, load)
                slot = None
                if evict != EMPTY:
                    slot = layer.unmap(evict)
                    unmapped.append((layer, evict, slot))
                if load != EMPTY:
                    copies.append(layer.reserve(load, slot))
            self._moved()
        except Exception as error:
            # Nothing has been copied yet, so the batch leaves no trace.
            for copy in copies:
                self._layers[copy.layer].release(copy.expert)
            for layer, expert, slot in reversed(unmapped):
                layer.restore(expert, slot)
            self._copier.refuse(batch_id, f"rank {self._rank}: {error}")
            self._moved()
            raise
        self._batches[batch_id] = _Batch(batch_id, copies)
        self._copier.submit(batch_id, copies, follows=bool(opened))

    def _layer(self, layer: int) -> ExpertLayer:
        if layer not in self._layers:
            raise MoveRefused(f"layer {layer} has no experts")
        return self._layers[layer]

    def _publish(self, fields: dict[str, Any]) -> None:
        self._map(fields["batch"])
        self._moved()

    def _map(self, batch_id: int) -> None:
        """Publishes, but for telling anybody that mappings have changed."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.published:
            raise MoveRefused(f"batch {batch_id} was not prepared")
        for copy in batch.copies:
            self._layers[copy.layer].publish(copy.expert)
        self._batches = {at: of for at, of in self._batches.items() if not of.published}
        batch.published = True

    def _abort(self, fields: dict[str, Any]) -> None:
        """Leaves the slots of a batch empty, whether it was prepared here, published, or neither.

        Ranks that came to different points agree again after it.
        """
        if (batch := self._batches.pop(fields["batch"], None)) is not None:
            for copy in batch.copies:
                layer = self._layers[copy.layer]
                # Each by itself: publishing may have failed in the middle.
                if layer.is_mapped(copy.expert):
                    layer.unmap(copy.expert)
                else:
                    layer.release(copy.expert)
        for layer_id, evict, _ in fields["moves"]:
            if layer_id in self._layers and self._layers[layer_id].is_mapped(evict):
                self._layers[layer_id].unmap(evict)
        self._moved()
