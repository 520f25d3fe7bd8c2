"""The file from which an interrupted training resumes."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from undoor.errors import UndoorError
from undoor.safe.torch_files import load_tensors
from undoor.storage.atomic import atomic


@dataclass
class Checkpoint:
    """The state of a training after its last whole epoch, in memory and in a file, which may be older.

    If its context ends by an exception, a state that is newer than the file is written.

    Args:
        path: the file.
        overwrite: replace the file of another training instead of raising an error.
        pause: least number of seconds between two writings.

    """

    path: Path
    overwrite: bool = False
    pause: float = 0.0
    _identity: dict[str, Any] = field(default_factory=dict, init=False)
    _unwritten: dict[str, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None and self._unwritten is not None:
            self._write(self._unwritten)

    def resume(self, identity: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
        """Return the state in the file, on ``device``, if a training of this identity wrote it; None without a file.

        Raises:
            UndoorError: another training wrote the file, and it may not be overwritten; the file is no checkpoint.

        """
        self._identity = identity
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = load_tensors(self.path, device)
            same = bool(state["identity"] == identity)
        except Exception as error:
            raise UndoorError(f"{self.path} is no checkpoint; remove it") from error
        if same:
            return state
        if self.overwrite:
            return None
        raise UndoorError(
            f"{self.path} was written by a training with other data or settings; remove it or choose another --out"
        )

    def keep(self, state: dict[str, Any], *, last: bool) -> None:
        """Keep the state after an epoch. The state after the last epoch is written only if an exception follows."""
        self._unwritten = state
        if not last and time.monotonic() - self._written >= self.pause:
            self._write(state)

    def forget(self) -> None:
        """Drop the state in memory, because the training has ended and its network is kept elsewhere."""
        self._unwritten = None

    def _write(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, **state}, buffer)
        with atomic(self.path) as path:
            path.write_bytes(buffer.getbuffer())
        self._unwritten, self._written = None, time.monotonic()
