"""Pickles as data: no object is made but numbers, texts, lists, tuples and dictionaries, and what the caller knows.

A pickle is a program for a small machine with a stack. This machine has the instructions that plain values need and
no others. It calls nothing but the stand-ins it is given, and every instruction takes a short time and little memory,
whatever came before it: nothing is hashed, compared or copied that the pickle could have nested.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

STEPS = 2_000_000
"""Instructions of a pickle: the batch of CIFAR-100 takes half a million, each a microsecond and a few dozen bytes."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_NUMBERS = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_OLD_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class CodeError(ValueError):
    """The pickle names a function or an object that is not known."""


def read_pickle(
    file: BinaryIO,
    known: Mapping[str, Callable[..., Any]],
    *,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value that the pickle at the file's position describes, and leave the file behind its end.

    Args:
        file: is read no further than the pickle asks for.
        known: a stand-in for every global that may be named, ``module.name``. What it returns may have a method
            ``build``, which is told the state of the object.
        persistent: returns what a persistent id stands for.

    Returns:
        The value; texts of Python 2 are bytes.

    Raises:
        CodeError: the pickle asks for something else.
        ValueError: it is broken or longer than ``STEPS``.

    """
    machine = _Machine(known, persistent)
    try:
        for steps, (code, argument, _) in enumerate(pickletools.genops(file)):
            if steps > STEPS:
                raise ValueError(f"it has more than the {STEPS:,} instructions that are read")
            if code.name == "STOP":
                return machine.stack.pop()
            machine.do(code.name, argument)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError("it is a broken pickle") from error
    raise ValueError("it is a broken pickle")  # which genops itself would say


class _Machine:
    def __init__(self, known: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None) -> None:
        self._known = known
        self._persistent = persistent
        self._memo: dict[int, Any] = {}
        self._marks: list[int] = []
        self.stack: list[Any] = []

    def do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _NUMBERS or name in _TEXTS or name in _BYTES:
            stack.append(argument)
        elif name in _OLD_TEXTS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append([] if name == "EMPTY_LIST" else self._marked())
        elif name == "TUPLE" or name in _TUPLES:
            stack.append(tuple(self._marked() if name == "TUPLE" else self._last(_TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            values = self._last(1) if name == "APPEND" else self._marked()
            _of(stack[-1], list).extend(values)
        elif name in ("EMPTY_DICT", "DICT"):
            pairs = [] if name == "EMPTY_DICT" else self._marked()
            stack.append({})
            self._set(pairs)
        elif name in ("SETITEM", "SETITEMS"):
            self._set(self._last(2) if name == "SETITEM" else self._marked())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if name == "GLOBAL" else self._last(2)
            stack.append(self._stand_in(".".join(parts)))
        elif name == "REDUCE":
            function, arguments = self._last(2)
            if not isinstance(function, _StandIn):
                raise ValueError("it calls what is no function")
            stack.append(function.function(*_of(arguments, tuple)))
        elif name == "BUILD":
            (state,) = self._last(1)
            if isinstance(stack[-1], dict):  # an ordered one with attributes of its own, which are left out
                return
            stack[-1].build(state)
        elif name == "BINPERSID" and self._persistent is not None:
            stack.append(self._persistent(stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it holds the instruction {name}, which plain values do not need")

    def _stand_in(self, name: str) -> "_StandIn":
        if name not in self._known:
            raise CodeError(f"it asks for {name[:100]}, which plain values do not need")
        return _StandIn(self._known[name])

    def _marked(self) -> list[Any]:
        mark = self._marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _set(self, values: list[Any]) -> None:
        target = _of(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A nested tuple can take for ever to hash, and large numbers can be chosen to have all one hash.
            if not isinstance(key, str | bytes) and not (isinstance(key, int) and abs(key) < 2**31):
                raise ValueError("a key of a dictionary is neither text nor small number")
            target[key] = value


class _StandIn:
    """A function that the pickle has named and may call; apart from all values, which it may not."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
