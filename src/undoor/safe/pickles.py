"""Pickles as data: numbers, texts, lists, tuples and dictionaries, and stand-ins for the objects that a caller expects.

A pickle is a program for a small machine with a stack, and Python's machine calls any function that the pickle names.
The machine in this module has the instructions that plain values need and no others. It calls only the stand-ins that
it is given. Every instruction takes a short time and little memory, whatever came before it: nothing that the pickle
can nest is hashed, compared or copied, and the number of instructions is bounded.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

STEPS = 2_000_000
"""Most instructions of a pickle. A batch of CIFAR-100 has half a million; each takes about a microsecond."""

_ARGUMENTS = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Instructions that put their argument on the stack."""
_OPERANDS = {
    "EMPTY_TUPLE": 0, "EMPTY_LIST": 0, "EMPTY_DICT": 0, "APPEND": 1, "BINPERSID": 1, "BUILD": 1, "TUPLE1": 1,
    "TUPLE2": 2, "REDUCE": 2, "SETITEM": 2, "STACK_GLOBAL": 2, "TUPLE3": 3,
}  # fmt: skip
"""How many values an instruction takes from the stack."""
_OPERANDS_TO_MARK = {"TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"}
"""Instructions that take from the stack all values since the last mark."""


class CodeError(ValueError):
    """The pickle names a function or a class for which there is no stand-in."""


def read_pickle(
    file: BinaryIO,
    stand_ins: Mapping[str, Callable[..., Any]],
    *,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value that a pickle describes, and leave the file at the end of the pickle.

    Args:
        file: the pickle begins at its position; nothing behind the pickle is read.
        stand_ins: by ``module.name``, a stand-in for every function and class that the pickle may name. What a stand-in
            returns may have a method ``build``, which is given the state of the object.
        persistent: returns the value of a persistent id; by default, a pickle with persistent ids is refused.

    Returns:
        The value; texts that Python 2 wrote are bytes.

    Raises:
        CodeError: if the pickle names a function or class without a stand-in.
        ValueError: if the pickle is broken or has too many instructions.

    """
    machine = _Machine(stand_ins, persistent)
    try:
        for steps, (code, argument, _) in enumerate(pickletools.genops(file)):
            if steps > STEPS:
                raise ValueError(f"it has more than the {STEPS:,} instructions that are read")
            if code.name == "STOP":
                return machine.stack.pop()
            machine.execute(code.name, argument)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError("it is a broken pickle") from error
    raise ValueError("it is a broken pickle")


class _Machine:
    def __init__(self, stand_ins: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None) -> None:
        self._stand_ins = stand_ins
        self._persistent = persistent
        self._memo: dict[int, Any] = {}
        self._marks: list[int] = []
        self.stack: list[Any] = []

    def execute(self, name: str, argument: Any) -> None:
        """Execute the instruction of this name, as ``pickletools`` names it."""
        stack = self.stack
        if name in _ARGUMENTS:
            stack.append(argument)
            return
        operands = self._pop(name)
        match name:
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":  # the texts of Python 2
                stack.append(argument.encode("latin-1"))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_LIST" | "LIST":
                stack.append(operands)
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "TUPLE":
                stack.append(tuple(operands))
            case "EMPTY_DICT" | "DICT":
                stack.append({})
                _set_items(stack[-1], operands)
            case "APPEND" | "APPENDS":
                _require(stack[-1], list).extend(operands)
            case "SETITEM" | "SETITEMS":
                _set_items(_require(stack[-1], dict), operands)
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(self._stand_in(".".join(operands or argument.split(" "))))
            case "REDUCE":
                function, arguments = operands
                if not isinstance(function, StandIn):
                    raise ValueError("it calls something that is no function")
                stack.append(function.call(*_require(arguments, tuple)))
            case "BUILD":
                if not isinstance(stack[-1], dict):  # attributes of an OrderedDict are left out
                    stack[-1].build(*operands)
            case "BINPERSID" if self._persistent is not None:
                stack.append(self._persistent(*operands))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(f"it holds the instruction {name}, which plain values do not need")

    def _pop(self, name: str) -> list[Any]:
        """Take the operands of an instruction from the stack."""
        if name not in _OPERANDS and name not in _OPERANDS_TO_MARK:
            return []
        start = self._marks.pop() if name in _OPERANDS_TO_MARK else len(self.stack) - _OPERANDS[name]
        if start < 0:
            raise IndexError
        operands = self.stack[start:]
        del self.stack[start:]
        return operands

    def _stand_in(self, name: str) -> "StandIn":
        if name not in self._stand_ins:
            raise CodeError(f"it asks for {name[:100]}, which plain values do not need")
        return StandIn(self._stand_ins[name])


class StandIn:
    """What a pickle gets when it names a function; a class of its own, so that no other value can be called."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def _set_items(target: dict[Any, Any], keys_and_values: list[Any]) -> None:
    for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
        # A nested tuple can take for ever to hash, and large numbers can be chosen so that all have the same hash.
        if not isinstance(key, str | bytes) and not (isinstance(key, int) and abs(key) < 2**31):
            raise ValueError("a key of a dictionary is neither text nor small number")
        target[key] = value


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
