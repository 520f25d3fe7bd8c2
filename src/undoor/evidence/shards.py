"""Outputs of a long pass over the images, in files from which a killed pass resumes: one file for each shard.

A shard is a run of consecutive images. The name of its file is a hash of everything that the outputs depend on, so
that a file that exists is never out of date.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from undoor.evidence.evidence import Outputs
from undoor.safe.limits import require_file
from undoor.storage.atomic import atomic

Arrays = Sequence[NDArray[np.float32]]


@dataclass
class ShardCache:
    """The outputs of the finished shards of a pass, in the files of a folder.

    Args:
        folder: the folder, which is made for the first shard; None if nothing is kept.
        images: (N, C, H, W) uint8, all images of the pass.
        origin: a text that determines, together with the images of a shard, its outputs.
        variants: number of ``Outputs`` of a shard: on the images themselves and on their twins by each filter.
        classes: K, the number of logits.

    """

    folder: Path | None
    images: NDArray[np.uint8]
    origin: str
    variants: int
    classes: int
    _paths: dict[int, Path] = field(default_factory=dict, init=False)
    _width: int | None = field(default=None, init=False)

    def load(self, rows: slice) -> list[Outputs] | None:
        """Return the outputs on the shard of these rows; None if they are not kept or do not fit the other shards."""
        arrays = None if self.folder is None else kept(self._path(self.folder, rows))
        if arrays is None or len(arrays) != 2 * self.variants or any(a.dtype != np.float32 for a in arrays):
            return None
        n = rows.stop - rows.start
        width = arrays[0].size // n if self._width is None else self._width
        if [a.shape for a in arrays] != [(n, width), (n, self.classes)] * self.variants:
            return None
        self._width = width
        return [Outputs(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)]

    def keep(self, rows: slice, outputs: Sequence[Outputs]) -> None:
        """Keep the outputs on the shard of these rows."""
        if self.folder is not None:
            arrays = [values for variant in outputs for values in (variant.features, variant.logits)]
            keep(self._path(self.folder, rows), arrays)

    def _path(self, folder: Path, rows: slice) -> Path:
        if rows.start not in self._paths:
            images = self.images[rows]
            digest = hashlib.blake2b(f"{self.origin} {images.shape}".encode(), digest_size=16)
            digest.update(np.ascontiguousarray(images).data)
            self._paths[rows.start] = folder / f"{digest.hexdigest()}.safetensors"
        return self._paths[rows.start]


def keep(path: Path, arrays: Arrays) -> None:
    """Write the arrays of a shard, atomically."""
    named = {f"{index:03}": np.ascontiguousarray(values) for index, values in enumerate(arrays)}
    encoded = save(named, metadata={"sum": _checksum(list(named.values()))})
    with atomic(path) as temporary:
        temporary.write_bytes(encoded)


def kept(path: Path) -> Arrays | None:
    """Return the arrays of a shard, or None if the file is missing or does not hold what was written."""
    try:
        require_file(path)
        with safe_open(path, framework="numpy") as file:
            arrays = [file.get_tensor(name) for name in sorted(file.keys())]
            whole = (file.metadata() or {}).get("sum") == _checksum(arrays)
    except (SafetensorError, OSError, ValueError, TypeError):
        return None
    return arrays if whole else None


def _checksum(arrays: Arrays) -> str:
    # The names and shapes in a file are not enough: after a power failure, its data may be other bytes.
    digest = hashlib.blake2b(digest_size=16)
    for values in arrays:
        digest.update(values.data)
    return digest.hexdigest()


@contextmanager
def kept_until_done(folder: Path) -> Iterator[Path]:
    """Yield a folder for shards. It is removed after success; after an error its shards stay for the next pass."""
    done = False
    try:
        yield folder
        done = True
    finally:
        if done:
            discard(folder)
        else:
            with suppress(OSError):
                folder.rmdir()  # fails if it holds a shard


def discard(folder: Path) -> None:
    """Remove a folder of shards if it exists."""
    shutil.rmtree(folder, ignore_errors=True)
