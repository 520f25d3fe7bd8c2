"""NumPy archives with ``images`` and ``labels``."""

import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np

from undoor.dataset import Dataset, row_ids
from undoor.errors import UndoorError, first_line
from undoor.readers.arrays import dataset_from_arrays
from undoor.readers.options import ReadOptions

# What zipfile and numpy, which takes headers for Python, raise on broken files.
_BROKEN = (
    OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError, TokenError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def accepts(path: Path) -> bool:
    """Whether ``path`` is a ``.npz`` file."""
    return path.suffix == ".npz"


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read ``images``, ``labels`` and, where they are there, ``class_names`` and ``ids``.

    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W); pickled arrays are refused.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _BROKEN as error:
        raise UndoorError(f"{path} is no .npz of plain arrays: {first_line(error)}") from error
    if not {"images", "labels"} <= arrays.keys():
        held = ", ".join(map(repr, arrays)) or "nothing"
        raise UndoorError(f"{path} holds {held}; it must hold images and labels")
    names = arrays.get("class_names")
    ids = arrays.get("ids")
    return dataset_from_arrays(
        arrays["images"],
        arrays["labels"],
        str(path),
        options,
        class_names=None if names is None else names.astype(np.str_).tolist(),
        ids=row_ids(len(arrays["labels"])) if ids is None else ids.astype(np.str_),
    )
