"""SGLang's list of which checkpoint name is which expert's, in an order that is found quickly.

``load_weights`` of SGLang's models walks this list for every tensor until an entry's name is part
of the tensor's: three entries an expert, so 1,536 substring tests with 512 experts, for each of 300
thousand tensors. Here a walk begins with the entries of the expert whose tensor is being loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_EXPERT = re.compile(r"experts\.[0-9]+\.")


class ExpertMapping(list[Any]):
    """A list whose iteration begins with the entries of one expert; all others follow in order.

    That changes no walk's outcome. Every entry asks for a name that has ``experts.N.`` in it, and a
    name that has this once is asked for by entries of one expert alone. They keep their order, so
    whoever looks for a name, the one in hand or any other, meets the same entries in the same
    order. Where that is not so (another kind of entry, a name with two such parts), iteration is a
    list's own.

    Args:
        entries: ``(parameter, part of the name, expert, shard)``, as SGLang makes them.
        name: Gives the name of the tensor in hand; may be any string.
    """

    def __init__(self, entries: Iterable[Any], name: Callable[[], str]) -> None:
        super().__init__(entries)
        self._name = name
        self._indexed = -1
        self._places: dict[str, tuple[int, ...]] = {}

    def __iter__(self) -> Iterator[Any]:
        places = self._first(self._name())
        return self._beginning_with(places) if places else super().__iter__()

    def _beginning_with(self, places: tuple[int, ...]) -> Iterator[Any]:
        for place in places:
            yield self[place]
        for place, entry in enumerate(super().__iter__()):
            if place not in places:
                yield entry

    def _first(self, name: str) -> tuple[int, ...]:
        """Where the entries of the name's expert are."""
        if self._indexed != len(self):  # models append to it
            self._indexed = len(self)
            self._places = _places(super().__iter__())
        experts = _EXPERT.findall(name)
        return self._places.get(experts[0], ()) if len(experts) == 1 else ()


def _places(entries: Iterable[Any]) -> dict[str, tuple[int, ...]]:
    """Where the entries of each expert are, or nothing if there are others."""
    places: dict[str, tuple[int, ...]] = {}
    for place, entry in enumerate(entries):
        part = entry[1] if isinstance(entry, tuple) and len(entry) > 1 else None
        expert = _EXPERT.match(part) if isinstance(part, str) else None
        if expert is None:
            return {}
        places[expert[0]] = (*places.get(expert[0], ()), place)
    return places
