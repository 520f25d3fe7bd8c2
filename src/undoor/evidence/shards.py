"""What has been computed of a long pass, in files that outlive it: one a shard, a run of consecutive images.

A shard's file is named by a hash of all that its arrays depend on. A name that is there is therefore never stale.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from undoor.safe.limits import require_file
from undoor.storage.atomic import atomic

Arrays = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Shards:
    """A folder with the arrays of finished shards.

    Args:
        folder: made when the first shard is kept.
        origin: names all that the arrays depend on besides the images.

    """

    folder: Path
    origin: str

    def path(self, images: NDArray[np.uint8]) -> Path:
        """Return the file for the arrays that come of ``images``."""
        digest = hashlib.blake2b(f"{self.origin} {images.shape}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(images).data)
        return self.folder / f"{digest.hexdigest()}.safetensors"


def keep(path: Path, arrays: Arrays) -> None:
    """Write the arrays of a shard, atomically."""
    named = {f"{place:03}": np.ascontiguousarray(values) for place, values in enumerate(arrays)}
    encoded = save(named, metadata={"sum": _sum(list(named.values()))})
    with atomic(path) as temporary:
        temporary.write_bytes(encoded)


def kept(path: Path) -> Arrays | None:
    """Return the arrays of a shard, or None if they are not there or not what was written."""
    try:
        require_file(path)
        with safe_open(path, framework="numpy") as file:
            arrays = [file.get_tensor(name) for name in sorted(file.keys())]
            whole = (file.metadata() or {}).get("sum") == _sum(arrays)
    except (SafetensorError, OSError, ValueError, TypeError):
        return None
    return arrays if whole else None


def _sum(arrays: Arrays) -> str:
    # Names and lengths are not enough: after a loss of power a file may be there with other bytes.
    digest = hashlib.blake2b(digest_size=16)
    for values in arrays:
        digest.update(values.data)
    return digest.hexdigest()


@contextmanager
def kept_until_done(folder: Path) -> Iterator[Path]:
    """Yield a folder for shards, and remove it when all has gone well; else it stays for whoever goes on."""
    done = False
    try:
        yield folder
        done = True
    finally:
        if done:
            discard(folder)
        else:
            with suppress(OSError):
                folder.rmdir()  # which fails if it holds a shard


def discard(folder: Path) -> None:
    """Remove a folder of shards, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
