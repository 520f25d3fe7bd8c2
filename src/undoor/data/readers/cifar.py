"""The CIFAR-10 and CIFAR-100 batches, python version and binary version."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.data.readers.arrays import dataset_from_arrays
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, first_line
from undoor.safe.limits import CLASSES, JSON_BYTES, read_bytes, require_file
from undoor.safe.pickles import read_pickle

PIXELS = 3 * 32 * 32
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BATCH_BYTES = 200_000_000
"""Bytes of all batches that are read together: the largest, CIFAR-100's training set, has 155 million."""

_TYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f4", "f8"}


class _Type:
    """Stands in for ``numpy.dtype``: a plain number."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        name = name.decode() if isinstance(name, bytes) else name
        if name not in _TYPES:
            raise ValueError(f"it holds an array of {name[:20]!r}, not of numbers")
        self.dtype = np.dtype(name)

    def build(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for what makes a numpy array: the array is a view of bytes that are there, and never larger."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.values = _view(content, kind, shape, "F" if fortran else "C")


def _view(content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    if not isinstance(content, bytes | bytearray) or not isinstance(kind, _Type):
        raise ValueError("it holds an array of objects, not of numbers")
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    made = _Array()
    made.values = _view(content, kind, shape, "F" if order == "F" else "C")
    return made


class _Encoder:
    """Stands in for ``_codecs.encode``, with which Python 3 writes bytes for Python 2: no more than a file can hold."""

    def __init__(self) -> None:
        self.left = BATCH_BYTES

    def __call__(self, text: str, *_: Any) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise ValueError(f"it holds more than {BATCH_BYTES:,} bytes")
        return text.encode("latin-1")


def _known() -> dict[str, Any]:
    """Return what the published batches name, and those that today's numpy writes."""
    known: dict[str, Any] = {"numpy.ndarray": None, "numpy.dtype": _Type, "_codecs.encode": _Encoder()}
    for module in ("numpy.core", "numpy._core"):
        known |= {f"{module}.multiarray._reconstruct": _Array, f"{module}.numeric._frombuffer": _from_buffer}
    return known


def accepts(path: Path) -> bool:
    """Whether ``path`` is a batch (by its name) or a folder that holds batches."""
    return bool(_files(path, "train") or _files(path, "test"))


def _files(path: Path, split: str) -> list[Path]:
    patterns = ("data_batch_*", "train", "train.bin") if split == "train" else ("test_batch*", "test", "test.bin")
    if path.is_file():
        return [path] if any(path.match(pattern) for pattern in patterns) else []
    return sorted(f for pattern in patterns for f in path.glob(pattern) if not f.is_dir())


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read one batch, or all batches of the split in a folder; CIFAR-100 with its fine labels."""
    files = [path] if path.is_file() else _files(path, options.split)
    if not files:
        raise UndoorError(f"{path} holds no CIFAR batch of the split {options.split!r}; choose train or test")
    _require_small(files)
    parts = [_binary(file) if file.suffix == ".bin" else _pickled(file) for file in files]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    fine = files[0].name.split(".")[0] in ("train", "test")
    folder = path if path.is_dir() else path.parent
    return dataset_from_arrays(
        pixels,
        labels,
        str(path),
        options,
        _class_names(folder, fine, int(labels.max(initial=0))),
    )


def _binary(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # CIFAR-10: label, pixels. CIFAR-100: coarse label, fine label, pixels.
    before = 2 if file.name in ("train.bin", "test.bin") else 1
    raw = np.fromfile(file, dtype=np.uint8)
    if len(raw) == 0 or len(raw) % (PIXELS + before):
        raise UndoorError(f"{file} is no whole CIFAR batch: {len(raw)} bytes, not a multiple of {PIXELS + before}")
    rows = raw.reshape(-1, PIXELS + before)
    return rows[:, before:], rows[:, before - 1].astype(np.int64)


def _require_small(files: list[Path]) -> None:
    left = BATCH_BYTES
    for file in files:
        try:
            left -= require_file(file, left)
        except (OSError, ValueError) as error:
            raise UndoorError(
                f"{file} is no CIFAR batch: {first_line(error)}; batches have {BATCH_BYTES:,} bytes together at most"
            ) from error


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        require_file(file, BATCH_BYTES)
        with file.open("rb") as opened:
            loaded = read_pickle(opened, _known())
        if not isinstance(loaded, dict):
            raise ValueError("it holds no dictionary")
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in loaded.items()}
    except (OSError, ValueError, MemoryError) as error:
        raise UndoorError(f"{file} is no CIFAR batch: {first_line(error)}") from error


def _pickled(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(file)
    labels = batch.get("fine_labels", batch.get("labels", []))
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise UndoorError(f"{file} is no CIFAR batch: its labels are no list of numbers from 0 to {CLASSES - 1}")
    held = batch.get("data")
    pixels = held.values if isinstance(held, _Array) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise UndoorError(f"{file} is no CIFAR batch: its 'data' is not one row of {PIXELS} bytes a label")
    return pixels, np.array(labels, dtype=np.int64)


def _class_names(folder: Path, fine: bool, largest: int) -> list[str]:
    """Return the names that lie beside the batches, else CIFAR-10's or numbers."""
    meta = folder / ("meta" if fine else "batches.meta")
    listed = folder / ("fine_label_names.txt" if fine else "batches.meta.txt")
    if meta.exists():
        names = _unpickle(meta).get("fine_label_names" if fine else "label_names", [])
        if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
            raise UndoorError(f"{meta} holds no list of names; mend or remove it")
        return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    if listed.exists():
        try:
            return read_bytes(listed, JSON_BYTES).decode().split()
        except (OSError, ValueError) as error:
            raise UndoorError(f"{listed} holds no names: {first_line(error)}; mend or remove it") from error
    return [str(k) for k in range(max(100, largest + 1))] if fine else list(CIFAR10)
