"""NumPy archives with ``images`` and ``labels``."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.data.readers.arrays import dataset_from_arrays
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, first_line
from undoor.safe.arrays import read_npz
from undoor.safe.limits import NAME_CHARACTERS


def accepts(path: Path) -> bool:
    """Return whether ``path`` is a ``.npz`` file."""
    return path.suffix == ".npz"


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read ``images``, ``labels`` and, if they are there, ``class_names`` and ``ids``.

    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W); pickled arrays are refused.
    """
    try:
        arrays, members = read_npz(path, ("images", "labels", "class_names", "ids"))
    except (OSError, ValueError) as error:
        raise UndoorError(f"{path} is no .npz of plain arrays: {first_line(error)}") from error
    if not {"images", "labels"} <= arrays.keys():
        listed = ", ".join(map(repr, members[:10])) or "nothing"
        raise UndoorError(f"{path} holds {listed}; it must hold images and labels")
    texts = {name: _texts(arrays[name], name, path) for name in ("class_names", "ids") if name in arrays}
    ids = np.array(texts["ids"], dtype=np.str_) if "ids" in texts else None
    names = texts.get("class_names")
    return dataset_from_arrays(arrays["images"], arrays["labels"], str(path), options, class_names=names, ids=ids)


def _texts(values: NDArray[Any], name: str, path: Path) -> list[str]:
    """Return an array of texts, of UTF-8 bytes or of integers as a list of texts."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.ndim != 1 or values.dtype.kind not in "Uiu" or values.dtype.itemsize > 4 * NAME_CHARACTERS:
        raise UndoorError(f"{path}: {name} are {values.dtype} of shape {values.shape}; give short texts, (N,)")
    return [str(value) for value in values.tolist()]
