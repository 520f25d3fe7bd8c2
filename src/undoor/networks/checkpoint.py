"""The file from which an interrupted training resumes."""

import io
import time
from pathlib import Path
from typing import Any, Self

import torch

from undoor.errors import UndoorError
from undoor.safe.torch_files import load_tensors
from undoor.storage.atomic import atomic


class Checkpoint:
    """The state after the last whole epoch: in memory, and in a file that may be a little older.

    Leaving it as a context by an exception writes what the file lacks.

    Args:
        path: the file.
        overwrite: replace the file of another training instead of raising an error.
        pause: seconds that pass at least between two writings.

    """

    def __init__(self, path: Path, *, overwrite: bool = False, pause: float = 0.0) -> None:
        self._path = path
        self._overwrite = overwrite
        self._pause = pause
        self._written = time.monotonic()
        self._identity: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None and self._state is not None:
            self._write(self._state)

    def resume(self, identity: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
        """Return the state in the file, on ``device``, if there is one and a training of this identity wrote it.

        Raises:
            UndoorError: if another training wrote it, unless it may be overwritten; if it is no checkpoint.

        """
        self._identity = identity
        if not self._path.exists():
            return None
        try:
            state: dict[str, Any] = load_tensors(self._path, device)
            same = bool(state["identity"] == identity)
        except Exception as error:
            raise UndoorError(f"{self._path} is no checkpoint; remove it") from error
        if same:
            return state
        if self._overwrite:
            return None
        raise UndoorError(
            f"{self._path} was written by a training with other data or settings; remove it or choose another --out"
        )

    def keep(self, state: dict[str, Any], *, last: bool) -> None:
        """Keep the state after an epoch and write it when it is time; the last one only if an exception follows."""
        self._state = state
        if not last and time.monotonic() - self._written >= self._pause:
            self._write(state)

    def forget(self) -> None:
        """Let go of the state: the training has ended, and what became of it is kept elsewhere."""
        self._state = None

    def _write(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, **state}, buffer)
        with atomic(self._path) as path:
            path.write_bytes(buffer.getbuffer())
        self._state, self._written = None, time.monotonic()
