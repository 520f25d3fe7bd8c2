"""What ``torch.save`` wrote, if it is made of tensors and plain values alone."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from undoor.safe.limits import UNPACKING, require_file, require_growth
from undoor.safe.pickles import read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
"""What files begin with that torch wrote before version 1.6, or was asked to write so later."""

_SIZES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
    "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8,
}  # fmt: skip


_BROKEN = (*UNPACKING, LookupError, TypeError, AssertionError, MemoryError, pickle.UnpicklingError)


def load_tensors(path: Path, device: str | torch.device = "cpu") -> Any:
    """Return the content of a file that ``torch.save`` wrote, its tensors on ``device``.

    What the file describes is gone through before anything is made of it. ``torch.load`` runs no code of
    ``weights_only`` files, but makes whatever sizes they ask for.

    Raises:
        CodeError: it names functions or objects.
        ValueError: it is no such file, or asks for more than it holds.
        OSError: it is not there.

    """
    size = require_file(path)
    try:
        with path.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"  # what torch looks at
            file.seek(0)
            if packed:
                _rehearse_archive(file, size)
            else:
                _rehearse_sequence(file, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except _BROKEN as error:
        raise ValueError(f"it is broken: {error}") from error


def _rehearse_archive(file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        require_growth(size, sum(member.file_size for member in members))
        # torch does not tell small letters from capitals.
        names = {member.filename.lower(): member for member in members}
        if len(names) < len(members):
            raise ValueError("it holds two files of one name")
        described = [name for name in names if name.endswith("/data.pkl")]
        if len(described) != 1 or described[0].removesuffix("data.pkl") + "constants.pkl" in names:
            raise ValueError("it is an archive, but none of tensors")
        with archive.open(names[described[0]]) as pickled:
            _rehearse(pickled, sum(member.file_size for member in members))  # type: ignore[arg-type] # it can read


def _rehearse_sequence(file: BinaryIO, size: int) -> None:
    # Five pickles: a number, the version of the form, the system, the content and the order of its storages.
    if _rehearse(file, size) != MAGIC:
        raise ValueError("torch did not write it")
    for _ in range(4):
        _rehearse(file, size)


class _Storage:
    """Stands in for the type of a storage, and for a storage of so many elements."""

    def __init__(self, element: int, count: int = 0) -> None:
        self.element, self.count = element, count


def _rehearse(file: BinaryIO, room: int) -> Any:
    """Go through a pickle; its storages have to fit into ``room`` bytes, and its tensors into their storages."""
    held: dict[str | bytes, int] = {}
    left = room

    def storage(described: Any) -> _Storage:
        nonlocal left
        kind, of, key, _, count = described[:5]
        if kind not in ("storage", b"storage") or not isinstance(count, int) or count < 0:  # bytes: of Python 2
            raise ValueError("it refers to something that is no storage")
        made = _Storage(of.function.element, count)
        name = key if isinstance(key, str | bytes) else str(int(key))
        left -= max(made.element * count - held.get(name, 0), 0)
        held[name] = max(made.element * count, held.get(name, 0))
        if left < 0:
            raise ValueError("its tensors do not fit into the file")
        return made

    return read_pickle(file, _KNOWN, persistent=storage)


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> None:
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor has an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.count:
        raise ValueError("a tensor does not fit into its storage")


def _first(value: Any = None, *_: Any) -> Any:
    return value


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": lambda *_: {},
    "collections.Counter": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    "torch.device": _first,
    "torch.storage.UntypedStorage": _Storage(1),
    **{f"torch.{name}Storage": _Storage(size) for name, size in _SIZES.items()},
}
