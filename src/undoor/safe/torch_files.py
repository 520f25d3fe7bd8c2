"""Files of ``torch.save``, if they consist of tensors and plain values.

A checkpoint is a pickle with storages beside it. With ``weights_only``, ``torch.load`` runs no code of it, but reserves
whatever memory it asks for: for bytes, for storages larger than the file, for archives that are bombs. So the pickle is
first read by ``undoor.safe.pickles``, with stand-ins that only count: every storage must fit into the file, and every
tensor into its storage. Only then does ``torch.load`` read the file.
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from undoor.safe.limits import UNPACKING, require_file, require_growth
from undoor.safe.pickles import read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file in the format that torch wrote before version 1.6, and still writes on request."""

_ELEMENT_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
    "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8,
}  # fmt: skip

_BROKEN = (*UNPACKING, LookupError, TypeError, AssertionError, MemoryError, pickle.UnpicklingError)


def load_tensors(path: Path, device: str | torch.device = "cpu") -> Any:
    """Return the content of a file that ``torch.save`` wrote, with its tensors on ``device``.

    Raises:
        CodeError: if the file names functions or classes other than those of tensors.
        ValueError: if it is no such file, is broken, or asks for more memory than it holds.
        OSError: if the file cannot be read.

    """
    size = require_file(path)
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"  # torch decides by these bytes too
            file.seek(0)
            if is_archive:
                _check_archive(file, size)
            else:
                _check_sequence(file, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except _BROKEN as error:
        raise ValueError(f"it is broken: {error}") from error


def _check_archive(file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        require_growth(size, unpacked)
        # torch ignores the case of the names, so that one pickle could be checked and another one loaded.
        by_name = {member.filename.lower(): member for member in members}
        if len(by_name) < len(members):
            raise ValueError("it holds two files of one name")
        pickles = [name for name in by_name if name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].removesuffix("data.pkl") + "constants.pkl" in by_name:
            raise ValueError("it is an archive, but none of tensors")
        with archive.open(by_name[pickles[0]]) as pickled:
            _check_pickle(pickled, unpacked)  # type: ignore[arg-type] # an IO[bytes] that can read


def _check_sequence(file: BinaryIO, size: int) -> None:
    # Five pickles: the magic number, the version of the format, the system, the content, the order of the storages.
    if _check_pickle(file, size) != MAGIC:
        raise ValueError("torch did not write it")
    for _ in range(4):
        _check_pickle(file, size)


class _Storage:
    """Stands in for a storage of ``count`` elements, and with 0 elements for the type of a storage."""

    def __init__(self, element_bytes: int, count: int = 0) -> None:
        self.element_bytes, self.count = element_bytes, count


def _check_pickle(file: BinaryIO, available: int) -> Any:
    """Read a pickle whose storages must fit into ``available`` bytes together, and its tensors into their storages."""
    claimed: dict[str | bytes, int] = {}

    def storage(persistent_id: Any) -> _Storage:
        nonlocal available
        kind, storage_type, key, _, count = persistent_id[:5]
        if kind not in ("storage", b"storage") or not isinstance(count, int) or count < 0:  # bytes: from Python 2
            raise ValueError("it refers to something that is no storage")
        referred = _Storage(storage_type.call.element_bytes, count)
        name = key if isinstance(key, str | bytes) else str(int(key))
        more = max(referred.element_bytes * count - claimed.get(name, 0), 0)
        claimed[name] = claimed.get(name, 0) + more
        available -= more
        if available < 0:
            raise ValueError("its tensors do not fit into the file")
        return referred

    return read_pickle(file, _STAND_INS, persistent=storage)


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> None:
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor has an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.count:
        raise ValueError("a tensor does not fit into its storage")


def _first(value: Any = None, *_: Any) -> Any:
    return value


_STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": lambda *_: {},
    "collections.Counter": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    "torch.device": _first,
    "torch.storage.UntypedStorage": _Storage(1),
    **{f"torch.{name}Storage": _Storage(size) for name, size in _ELEMENT_BYTES.items()},
}
