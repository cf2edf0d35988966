"""Watches SGLang's loader while it copies from a view of a weight file, and puts the copies off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_COPY = torch.ops.aten.copy_.default
_COPY_METHOD = torch.Tensor.copy_
# They read a tensor's memory without an operator that a mode sees.
_NO_OPERATORS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}


class Files(Protocol):
    """Who knows which tensors are views of files, and reads them."""

    def file_of(self, tensor: torch.Tensor) -> object | None:
        """The file that a tensor is a view of, or None."""
        ...

    def fill(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Reads the bytes of a view of a file into a tensor of the same shape and type."""
        ...

    def read(self, source: torch.Tensor) -> torch.Tensor:
        """A view of a file with the same strides in memory of its own."""
        ...


class PutOffCopies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records copies from views of files, and reads what anything else wants of such a view.

    Attributes:
        jobs: Destination and source of copies that were put off.
        materialised: Something else was done with a view.
    """

    def __init__(self, reader: Files) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reader = reader
        self.jobs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.materialised = False
        self._was_put_off = False
        self._entered: ExitStack | None = None

    def watch(self, load: Callable[[torch.Tensor], None], view: torch.Tensor) -> None:
        """Calls SGLang's loader with a view of a file.

        Until it copies something, only what it does with the view matters, and everything else is
        none of ours; from then on, it may look at where the copy goes to.
        """
        with ExitStack() as self._entered:
            load(_watched(view, self))
        self._entered = None
        if not self._was_put_off and not self.materialised:
            # Whatever it did with the view, if anything, it did past torch's Python functions.
            with self:
                load(view)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, **options: Any) -> Any:
        """``destination.copy_(source)``, of a view of a file."""
        if not options and self._put_off(destination, source):
            self._watch_all()
            return destination
        return self.run(_COPY_METHOD, (destination, source), options)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Any function of torch, on views of files and others."""
        if func in _NO_OPERATORS:
            args = pytree.tree_map_only(torch.Tensor, self._real, args)
        if self._entered is None:
            return func(*args, **kwargs)
        with self:
            result = func(*args, **kwargs)
        self._watch_all()
        return result

    def _watch_all(self) -> None:
        """Behind a copy that was put off: every operator, as it may look at where that goes to."""
        if self._was_put_off and self._entered is not None:
            self._entered.enter_context(self)
            self._entered = None

    def is_of_file(self, tensor: torch.Tensor) -> bool:
        """Whether reading it would read a file's mapping."""
        return self._reader.file_of(tensor) is not None and tensor.numel() > 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is _COPY and self._put_off(args[0], args[1]):
            return args[0]
        if not func.is_view:
            tensors = list(_tensors_in((args, kwargs)))
            self._settle(tensors)
            if any(map(self.is_of_file, tensors)):
                args, kwargs = pytree.tree_map_only(torch.Tensor, self._real, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here, and telling torch so in every call costs more than most."""
        return False

    def _put_off(self, destination: torch.Tensor, source: torch.Tensor) -> bool:
        fits = (
            self._reader.file_of(source) is not None
            and destination.device.type == "cpu"
            and destination.shape == source.shape
            and destination.dtype == source.dtype
            and source.numel() > 0
        )
        if fits:
            self.jobs.append((destination, source))
            self._was_put_off = True
        return fits

    def _settle(self, tensors: list[torch.Tensor]) -> None:
        """Does what was put off, before anything looks at where it goes to."""
        if not self.jobs:
            return
        places = {_storage(destination) for destination, _ in self.jobs}
        if any(_storage(tensor) in places for tensor in tensors):
            for destination, source in self.jobs:
                self._reader.fill(destination, source)
            self.jobs.clear()

    def _real(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.is_of_file(tensor):
            return tensor
        self.materialised = True
        return self._reader.read(tensor)


class _Watched(torch.Tensor):
    """A view of a file whose every use by torch's Python functions is seen.

    A mode sees all operators, also those of tensors that are no view, and costs time for each.
    """

    plain: torch.Tensor
    copies: PutOffCopies

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """In place of ``func``: a view of a view is one, a copy from it may be put off."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if type(first) is cls and func in _LOOKS:
            return func(first.plain, *args[1:], **kwargs)
        if type(first) is cls and func in _VIEWS:
            return _watched(func(first.plain, *args[1:], **kwargs), first.copies)
        if func is _COPY_METHOD and [type(one) is cls for one in args] == [False, True]:
            return args[1].copies.copy(first, args[1].plain, **kwargs)
        copies = next(view.copies for view in _tensors_in((args, kwargs)) if type(view) is cls)
        found = copies.run(func, _plain(args), _plain(kwargs))
        return pytree.tree_map_only(
            torch.Tensor,
            lambda one: _watched(one, copies) if copies.is_of_file(one) else one,
            found,
        )


# What loaders ask most; everything else goes the long way round.
_Tensor: Any = torch.Tensor
_LOOKS = {
    *(_Tensor.shape.__get__, _Tensor.dtype.__get__, _Tensor.device.__get__, _Tensor.ndim.__get__),
    *(_Tensor.dim, _Tensor.size, _Tensor.stride, _Tensor.numel),
    *(_Tensor.element_size, _Tensor.is_contiguous),
}
_VIEWS = {_Tensor.narrow}


def _plain(values: Any) -> Any:
    return pytree.tree_map_only(_Watched, lambda view: view.plain, values)


def _watched(view: torch.Tensor, copies: PutOffCopies) -> torch.Tensor:
    watched = view.as_subclass(_Watched)
    watched.plain, watched.copies = view, copies
    return watched


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All of an operator's arguments: single, or in lists, as torch's schemas allow."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _storage(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
