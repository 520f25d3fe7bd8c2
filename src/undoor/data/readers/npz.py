"""NumPy archives with ``images`` and ``labels``."""

import math
import zipfile
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset, row_ids
from undoor.data.readers.arrays import dataset_from_arrays
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, first_line
from undoor.safe.limits import NAME, UNPACKING, require_file, require_growth

WANTED = ("images", "labels", "class_names", "ids")

# What zipfile and numpy, which takes headers for Python, raise on broken files.
_BROKEN = (*UNPACKING, OSError, ValueError, KeyError, SyntaxError, TokenError)


def accepts(path: Path) -> bool:
    """Whether ``path`` is a ``.npz`` file."""
    return path.suffix == ".npz"


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read ``images``, ``labels`` and, where they are there, ``class_names`` and ``ids``.

    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W); pickled arrays are refused.
    """
    try:
        packed = require_file(path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = [members[name] for name in WANTED if name in members]
            require_growth(packed, sum(info.file_size for info in wanted))
            arrays = {name: _array(archive, members[name]) for name in WANTED if name in members}
    except _BROKEN as error:
        raise UndoorError(f"{path} is no .npz of plain arrays: {first_line(error)}") from error
    if not {"images", "labels"} <= arrays.keys():
        held = ", ".join(map(repr, list(members)[:10])) or "nothing"
        raise UndoorError(f"{path} holds {held}; it must hold images and labels")
    names = arrays.get("class_names")
    ids = arrays.get("ids")
    return dataset_from_arrays(
        arrays["images"],
        arrays["labels"],
        str(path),
        options,
        class_names=None if names is None else _texts(names, "class_names", path),
        ids=row_ids(arrays["labels"].size) if ids is None else np.array(_texts(ids, "ids", path), dtype=np.str_),
    )


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return a member; its header, which numpy believes, must ask for just the bytes that follow."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(file)
        if kind.hasobject:
            raise ValueError("it holds pickled objects")
        count = math.prod(shape)
        if count > member.file_size or count * kind.itemsize != member.file_size - file.tell():
            raise ValueError(f"{member.filename} does not hold the array that its header tells of")
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _texts(values: NDArray[Any], name: str, path: Path) -> list[str]:
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.ndim != 1 or values.dtype.kind not in "Uiu" or values.dtype.itemsize > 4 * NAME:
        raise UndoorError(f"{path}: {name} are {values.dtype} of shape {values.shape}; give short texts, (N,)")
    return [str(value) for value in values.tolist()]
