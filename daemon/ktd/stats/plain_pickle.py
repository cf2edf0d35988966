"""Reads the data in a pickle and executes nothing.

A pickle is a program for a stack machine (the opcodes are documented in ``pickletools``). This is
that machine without its dangerous half: the names it resolves are those that the caller lists, and
what they stand for is the caller's own code. There is no import and no attribute access.
"""

from __future__ import annotations

import pickletools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MARK = object()
_IGNORED = frozenset(("PROTO", "FRAME"))
_LITERALS = frozenset(
    (
        "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
        "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    )
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleRefused(ValueError):
    """The pickle is malformed, or wants something that is not plain data."""


class NameRefused(PickleRefused):
    """The pickle names a class or function that is not on the list; ``name`` is ``module.name``."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name} is not allowed")
        self.name = name


class PlainPickle:
    """The stack machine.

    Args:
        names: What ``module.name`` stands for; callables are called with the pickled arguments.
        persistent: Turns a persistent id into a value.
    """

    def __init__(self, names: Mapping[str, object], persistent: Callable[[object], object]) -> None:
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> object:
        """The one value that ``data`` describes.

        Raises:
            PickleRefused: it is malformed, or does more than describe plain data.
        """
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except PickleRefused:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise PickleRefused(f"malformed pickle ({error})") from error
        raise PickleRefused("malformed pickle (no end)")

    def _step(self, name: str, argument: Any) -> None:  # noqa: C901, PLR0912  # one opcode a line
        stack = self._stack
        if name in _IGNORED:
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in _TUPLES:
            stack.append(self._take(_TUPLES[name]))
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._to_mark()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = list(self._take(2)) if name == "SETITEM" else self._to_mark()
            _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(self._resolve(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(self._resolve(".".join(self._take(2))))
        elif name == "REDUCE":
            function, arguments = self._take(2)
            stack.append(function(*_expect(arguments, tuple)))
        elif name == "BINPERSID":
            stack.append(self._persistent(stack.pop()))
        else:
            raise PickleRefused(f"the pickle uses {name}, which plain data does not need")

    def _take(self, count: int) -> tuple[Any, ...]:
        if count > len(self._stack):
            raise PickleRefused("malformed pickle (the stack is empty)")
        taken = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return taken

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _resolve(self, name: str) -> object:
        if name not in self._names:
            raise NameRefused(name)
        return self._names[name]


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleRefused(f"malformed pickle (a {type(value).__name__}, not a {kind.__name__})")
    return value
