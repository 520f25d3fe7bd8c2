"""NumPy arrays in archives (``.npz``) and in pickles, such as the batches of CIFAR.

A short header can claim an array of terabytes, for which NumPy reserves the memory. An array of objects is a pickle,
which can run code. A compressed archive can be a bomb. So an array is read only if it consists of numbers or texts and
the file contains all its bytes, and an archive only if it unpacks to no more than its size allows.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from undoor.errors import first_line
from undoor.safe.limits import UNPACKING, require_file, require_growth
from undoor.safe.pickles import read_pickle

_BROKEN = (*UNPACKING, KeyError, SyntaxError, TokenError)
"""What ``zipfile`` raises on broken archives, and NumPy, which parses headers as Python, on broken arrays."""

_PICKLED_TYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f4", "f8"}


def read_npz(path: Path, names: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of a ``.npz`` file that have one of these names, and the names of all its members.

    Raises:
        ValueError: if the file is broken or grows too much, or if an array holds objects or has a wrong header.
        OSError: if the file cannot be read.

    """
    try:
        packed = require_file(path)
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            wanted = {name: members[name] for name in names if name in members}
            require_growth(packed, sum(member.file_size for member in wanted.values()))
            return {name: _read_member(archive, member) for name, member in wanted.items()}, list(members)
    except _BROKEN as error:
        raise ValueError(first_line(error)) from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects")
        count = math.prod(shape)
        if count > member.file_size or count * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{member.filename} does not hold the array that its header describes")
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


class PickledArray:
    """Stands in for the functions that create a NumPy array; ``values`` is a view of bytes that the pickle holds."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        """Take the array from a state as ``numpy.ndarray.__setstate__`` has it."""
        _, shape, dtype, is_fortran, content = state
        if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _PickledType):
            raise ValueError("it holds an array of objects, not of numbers")
        self.values = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


class _PickledType:
    """Stands in for ``numpy.dtype``, restricted to numbers and truth values."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        name = name.decode() if isinstance(name, bytes) else name
        if name not in _PICKLED_TYPES:
            raise ValueError(f"it holds an array of {name[:20]!r}, not of numbers")
        self.dtype = np.dtype(name)

    def build(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Encoder:
    """Stands in for ``_codecs.encode``, with which Python 3 pickles bytes for Python 2; it encodes a bounded number."""

    def __init__(self, most: int) -> None:
        self._most = self._remaining = most

    def __call__(self, text: str, *_: Any) -> bytes:
        self._remaining -= len(text)
        if self._remaining < 0:
            raise ValueError(f"it holds more than {self._most:,} bytes")
        return text.encode("latin-1")


def read_array_pickle(file: BinaryIO, most: int) -> Any:
    """Return the value of a pickle in which every array is a ``PickledArray``.

    Python 3 pickles bytes for Python 2 as texts, which a pickle could encode again and again: ``most`` bytes are
    encoded in all. Raises ``ValueError`` if the pickle is broken or holds anything but plain values and such arrays.
    """
    stand_ins: dict[str, Any] = {"numpy.ndarray": None, "numpy.dtype": _PickledType, "_codecs.encode": _Encoder(most)}
    for module in ("numpy.core", "numpy._core"):  # the names before NumPy 2 and since
        stand_ins |= {f"{module}.multiarray._reconstruct": PickledArray, f"{module}.numeric._frombuffer": _from_buffer}
    return read_pickle(file, stand_ins)


def _from_buffer(content: bytes, dtype: _PickledType, shape: tuple[int, ...], order: str) -> PickledArray:
    array = PickledArray()
    array.build((1, shape, dtype, order == "F", content))
    return array
