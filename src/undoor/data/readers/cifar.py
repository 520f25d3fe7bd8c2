"""The batches of CIFAR-10 and CIFAR-100, in the python version and in the binary version."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.data.readers.arrays import dataset_from_arrays
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError, first_line
from undoor.safe.arrays import PickledArray, read_array_pickle
from undoor.safe.limits import CLASSES, JSON_BYTES, read_bytes, require_file

PIXELS = 3 * 32 * 32
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BATCH_BYTES = 200_000_000
"""Most bytes of all batches together: the largest set, CIFAR-100's training set, has 155 million."""


def accepts(path: Path) -> bool:
    """Return whether ``path`` has the name of a batch, or is a folder that contains batches."""
    return bool(_files(path, "train") or _files(path, "test"))


def _files(path: Path, split: str) -> list[Path]:
    patterns = ("data_batch_*", "train", "train.bin") if split == "train" else ("test_batch*", "test", "test.bin")
    if path.is_file():
        return [path] if any(path.match(pattern) for pattern in patterns) else []
    return sorted(file for pattern in patterns for file in path.glob(pattern) if not file.is_dir())


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read one batch, or all batches of the split in a folder. CIFAR-100 has its fine labels."""
    files = [path] if path.is_file() else _files(path, options.split)
    if not files:
        raise UndoorError(f"{path} holds no CIFAR batch of the split {options.split!r}; choose train or test")
    _require_small(files)
    parts = [_read_binary(file) if file.suffix == ".bin" else _read_pickled(file) for file in files]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    is_cifar100 = files[0].name.split(".")[0] in ("train", "test")
    folder = path if path.is_dir() else path.parent
    names = _class_names(folder, is_cifar100, int(labels.max(initial=0)))
    return dataset_from_arrays(pixels, labels, str(path), options, names)


def _require_small(files: list[Path]) -> None:
    remaining = BATCH_BYTES
    for file in files:
        try:
            remaining -= require_file(file, remaining)
        except (OSError, ValueError) as error:
            raise UndoorError(
                f"{file} is no CIFAR batch: {first_line(error)}; batches have {BATCH_BYTES:,} bytes together at most"
            ) from error


def _read_binary(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # A row is a label and the pixels in CIFAR-10; a coarse label, a fine label and the pixels in CIFAR-100.
    label_bytes = 2 if file.name in ("train.bin", "test.bin") else 1
    content = np.fromfile(file, dtype=np.uint8)
    if len(content) == 0 or len(content) % (PIXELS + label_bytes):
        raise UndoorError(
            f"{file} is no whole CIFAR batch: {len(content)} bytes, not a multiple of {PIXELS + label_bytes}"
        )
    rows = content.reshape(-1, PIXELS + label_bytes)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


def _read_pickled(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(file)
    labels = batch.get("fine_labels", batch.get("labels", []))
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise UndoorError(f"{file} is no CIFAR batch: its labels are no list of numbers from 0 to {CLASSES - 1}")
    data = batch.get("data")
    pixels = data.values if isinstance(data, PickledArray) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise UndoorError(f"{file} is no CIFAR batch: its 'data' is not one row of {PIXELS} bytes a label")
    return pixels, np.array(labels, dtype=np.int64)


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        require_file(file, BATCH_BYTES)
        with file.open("rb") as opened:
            content = read_array_pickle(opened, BATCH_BYTES)
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary")
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    except (OSError, ValueError, MemoryError) as error:
        raise UndoorError(f"{file} is no CIFAR batch: {first_line(error)}") from error


def _class_names(folder: Path, is_cifar100: bool, largest: int) -> list[str]:
    """Return the names in the folder of the batches; without any, those of CIFAR-10, or numbers for CIFAR-100."""
    pickled = folder / ("meta" if is_cifar100 else "batches.meta")
    listed = folder / ("fine_label_names.txt" if is_cifar100 else "batches.meta.txt")
    if pickled.exists():
        names = _unpickle(pickled).get("fine_label_names" if is_cifar100 else "label_names", [])
        if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
            raise UndoorError(f"{pickled} holds no list of names; mend or remove it")
        return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    if listed.exists():
        try:
            return read_bytes(listed, JSON_BYTES).decode().split()
        except (OSError, ValueError) as error:
            raise UndoorError(f"{listed} holds no names: {first_line(error)}; mend or remove it") from error
    return [str(k) for k in range(max(100, largest + 1))] if is_cifar100 else list(CIFAR10)
