"""The CIFAR-10 and CIFAR-100 batches, python version and binary version."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.dataset import Dataset
from undoor.errors import UndoorError, first_line
from undoor.readers.arrays import dataset_from_arrays
from undoor.readers.options import ReadOptions

PIXELS = 3 * 32 * 32
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Everything that the published batches name: arrays of numbers, and nothing that can act.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return super().find_class(module, name)


def accepts(path: Path) -> bool:
    """Whether ``path`` is a batch (by its name) or a folder that holds batches."""
    return bool(_files(path, "train") or _files(path, "test"))


def _files(path: Path, split: str) -> list[Path]:
    patterns = ("data_batch_*", "train", "train.bin") if split == "train" else ("test_batch*", "test", "test.bin")
    if path.is_file():
        return [path] if any(path.match(pattern) for pattern in patterns) else []
    return sorted(f for pattern in patterns for f in path.glob(pattern) if f.is_file())


def read(path: Path, options: ReadOptions) -> Dataset:
    """Read one batch, or all batches of the split in a folder; CIFAR-100 with its fine labels."""
    files = [path] if path.is_file() else _files(path, options.split)
    if not files:
        raise UndoorError(f"{path} holds no CIFAR batch of the split {options.split!r}; choose train or test")
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


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        loaded = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}
    except Exception as error:
        raise UndoorError(f"{file} is no CIFAR batch: {first_line(error)}") from error


def _pickled(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(file)
    labels = np.asarray(batch.get("fine_labels", batch.get("labels", [])))
    pixels = batch.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise UndoorError(f"{file} is no CIFAR batch: its 'data' is not one row of {PIXELS} bytes a label")
    return pixels, labels


def _class_names(folder: Path, fine: bool, largest: int) -> list[str]:
    """Return the names that lie beside the batches, else CIFAR-10's or numbers."""
    meta = folder / ("meta" if fine else "batches.meta")
    listed = folder / ("fine_label_names.txt" if fine else "batches.meta.txt")
    if meta.is_file():
        names = _unpickle(meta).get("fine_label_names" if fine else "label_names", [])
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    if listed.is_file():
        return listed.read_text(encoding="utf-8").split()
    return [str(k) for k in range(max(100, largest + 1))] if fine else list(CIFAR10)
