"""One expert as SGLang's method keeps it after loading: what its host rows become in a slot.

SGLang rearranges parameters for some of its runners once they are loaded. It does so for each
expert by itself, so that its own code, run on a layer of one expert, gives the contents of a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ktd.sgl.expert_format import ExpertFormat

_OF_MODULES = frozenset(vars(nn.Module()))


@dataclass(frozen=True, slots=True)
class Layout:
    """How experts lie in slots.

    Attributes:
        slot: Tensors of the meta device like those of one expert, by parameter name; what the
            runner does without is left out.
        host: Types that host memory has them in.
    """

    slot: Mapping[str, torch.Tensor]
    host: Mapping[str, torch.dtype]


class OneExpert:
    """SGLang's method over a layer of one expert.

    Args:
        method: SGLang's method.
        layer: SGLang's layer, before it has parameters.
        experts: Of the experts in host memory.
        attributes: What SGLang's layer gives to ``create_weights``.
        device: Where.

    Attributes:
        fields: Of ExpertWeights, by parameter name.
        rows: Memory for one expert as host memory has it, by parameter name, on the device.
        layout: Of a slot.
        hidden: What tokens are cut to again behind a runner that pads them; None: it does not.
    """

    def __init__(
        self,
        method: Any,
        layer: nn.Module,
        experts: ExpertFormat,
        attributes: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self._method = method
        self._transposed = experts.transposed
        self._padding, self.fields = experts.padding, experts.fields
        # MXFP4's method looks at the layer, and not at what it is told.
        blank = _Layer({**vars(layer), "num_local_experts": 1})
        with torch.device(device):
            method.create_weights(
                layer=blank, num_experts=1, weight_loader=_load_nothing, **attributes
            )
        # What the method notes on the layer beside its parameters; those that it remembers to have
        # rearranged are not among it.
        self._notes = dict(vars(blank))
        declared = dict(blank.named_parameters(recurse=False))
        self._beside = {n: p.data for n, p in declared.items() if n not in experts.fields}
        # What is beside an expert there stays as SGLang's method made it.
        self._padded = (
            {} if self._padding is None else {name: declared[name].data for name in experts.fields}
        )
        self._read = tuple(name for name in experts.fields if name not in experts.unread)
        self.rows = {
            name: torch.zeros(like.shape[1:], dtype=like.dtype, device=device)
            for name, like in experts.host_parameters(declared).items()
        }
        self.hidden = None if experts.padding is None else experts.padding.hidden
        self.layout = Layout(
            {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                for name, tensor in self.converted().items()
            },
            {name: row.dtype for name, row in self.rows.items()},
        )

    @torch.no_grad()
    def converted(self) -> dict[str, torch.Tensor]:
        """What :attr:`rows` are in a slot, by parameter name.

        On a GPU it is enqueued, and where SGLang's code reads on the host, as it does AWQ's zero
        points, the current stream is waited for.
        """
        layer = _Layer(self._notes)
        for name, tensor in self._beside.items():
            layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        for name, row in self.rows.items():
            loaded = self._as_loaded(name, row)
            layer.register_parameter(name, nn.Parameter(loaded, requires_grad=False))
        self._method.process_weights_after_loading(layer)
        return {name: getattr(layer, name).data[0] for name in self._read}

    def _as_loaded(self, name: str, row: torch.Tensor) -> torch.Tensor:
        """Host rows as SGLang's loader leaves them, ``[1, …]``."""
        if self._padding is not None:
            padded = self._padded[name]
            self._padding.write(self.fields[name], row, padded[0])
            return padded
        rows = row.unsqueeze(0)
        return rows.transpose(1, 2).contiguous() if self._transposed else rows

    @torch.no_grad()
    def keeps_bytes(self) -> bool:
        """Whether a slot holds the bytes of host rows in their order; waits for the device."""
        for row in self.rows.values():
            size = row.numel() * row.element_size()
            count = torch.arange(size, dtype=torch.int32, device=row.device)
            # No period of the counting is one of the rows'.
            row.view(-1).view(torch.uint8).copy_((count * 167 + count // 251).to(torch.uint8))
        made = self.converted()
        return all(
            tensor.is_contiguous()
            and torch.equal(
                tensor.view(-1).view(torch.uint8), self.rows[name].view(-1).view(torch.uint8)
            )
            for name, tensor in made.items()
        )


class _Layer(nn.Module):
    """A layer with what another one has beside its parameters and modules."""

    def __init__(self, of: Mapping[str, Any]) -> None:
        super().__init__()
        self.__dict__.update((name, value) for name, value in of.items() if name not in _OF_MODULES)


def _load_nothing(*_: Any, **__: Any) -> None:
    """Stands where SGLang wants a loader: nothing is loaded here."""
