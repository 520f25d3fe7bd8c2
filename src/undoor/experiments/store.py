"""A folder of results: working files, and the same results packed into a few tables for version control."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from undoor.errors import UndoorError, first_line
from undoor.evidence import Outputs
from undoor.experiments.packed import Result, as_table, read_table
from undoor.safe.limits import read_json, require_file
from undoor.storage.atomic import atomic, write_text

KINDS = ("victims", "findings", "retrained", "examinations", "diverged")
"""The kinds of results. Each has a folder of working files and, once it is packed, a table."""


@dataclass(frozen=True)
class Store:
    """A folder of results.

    ``root/work`` holds the working files, which version control ignores: one file a result or network, named by a
    hash of what it depends on. A file is either whole or not there, and names no path: the working files of two
    folders are merged by copying one into the other.

    - ``victims``: every trained network (``.safetensors``) and what was measured of it (``.json``);
    - ``findings``: what every contender before training found on a victim;
    - ``retrained``: what was measured of the networks that were trained without what a contender flagged;
    - ``examinations``: what the contenders after training and in use found on a victim;
    - ``diverged``: the trainings that ended with a loss that is no number;
    - ``cache``: outputs of networks, and trainings that are under way. They can be made again.

    Everything else in ``root`` is meant for version control. ``root/KIND.parquet`` holds all results of a kind, one row
    a result, and ``root/victims`` some of the networks. A result or network that has no working file is taken from
    there, so that a clone of the repository goes on where the run that wrote it ended.
    """

    root: Path
    _packed: dict[str, dict[str, Result]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def begin(self) -> None:
        """Prepare the folder of working files for a run."""
        ignore = self.root / "work" / ".gitignore"
        if not ignore.exists():
            write_text(ignore, "*\n")

    def path(self, kind: str, key: str, suffix: str = ".json") -> Path:
        """Return the path of a working file, whether or not it exists."""
        return self.root / "work" / kind / f"{key}{suffix}"

    def network(self, key: str) -> Path:
        """Return the file of a victim's network: the packed one if only that exists, else the working file."""
        working, packed = self.path("victims", key, ".safetensors"), self._packed_network(key)
        return packed if packed.exists() and not working.exists() else working

    def _packed_network(self, key: str) -> Path:
        return self.root / "victims" / f"{key}.safetensors"

    def read(self, kind: str, key: str) -> Result | None:
        """Return a result, or None if there is none."""
        path = self.path(kind, key)
        if not path.exists():
            return self.packed(kind).get(key)
        try:
            result: Result = read_json(path)
        except (OSError, ValueError) as error:
            raise UndoorError(f"{path} is no result: {first_line(error)}; remove it, and it is made again") from error
        return result

    def write(self, kind: str, key: str, result: Result) -> Result:
        """Write a result into its working file; return it as it will be read."""
        # One line for every entry keeps the file short and shows a change of one entry as a change of one line.
        lines = [
            f"{json.dumps(name)}: {json.dumps(result[name], sort_keys=True, ensure_ascii=False, allow_nan=False)}"
            for name in sorted(result)
        ]
        text = "{\n" + ",\n".join(lines) + "\n}"
        write_text(self.path(kind, key), text + "\n")
        written: Result = json.loads(text)
        return written

    def all(self, kind: str) -> dict[str, Result]:
        """Return every result of a kind by its key, in the order of the keys."""
        working = {path.stem for path in (self.root / "work" / kind).glob("*.json")}
        return {key: self.read(kind, key) or {} for key in sorted(working | self.packed(kind).keys())}

    def packed(self, kind: str) -> dict[str, Result]:
        """Return the packed results of a kind by their keys. The table is read once."""
        if kind not in self._packed:
            self._packed[kind] = read_table(self.root / f"{kind}.parquet")
        return self._packed[kind]

    def pack(self, networks: Iterable[str]) -> None:
        """Write every result into the table of its kind, and keep these networks, by their keys, in ``root/victims``.

        Other networks that lie there and belong to a result are moved to the working files.
        """
        for kind in KINDS:
            results = self.all(kind)
            if results:
                with atomic(self.root / f"{kind}.parquet") as temporary:
                    pq.write_table(as_table(results), temporary, compression="zstd", compression_level=9)
        self._packed.clear()
        chosen = set(networks)
        for key in self.all("victims"):
            working, packed = self.path("victims", key, ".safetensors"), self._packed_network(key)
            if key in chosen and working.exists():
                with atomic(packed) as temporary:
                    shutil.copyfile(working, temporary)
            elif key not in chosen and packed.exists():
                working.parent.mkdir(parents=True, exist_ok=True)
                packed.replace(working)

    def has_outputs(self, key: str) -> bool:
        """Whether outputs of a network are in the cache."""
        return self.path("cache", key, ".outputs").exists()

    def keep_outputs(self, key: str, outputs: Outputs) -> None:
        """Write outputs of a network into the cache."""
        with atomic(self.path("cache", key, ".outputs")) as temporary:
            temporary.write_bytes(save({"features": outputs.features, "logits": outputs.logits}))

    def outputs(self, key: str) -> Outputs:
        """Return outputs of a network from the cache."""
        path = self.path("cache", key, ".outputs")
        try:
            require_file(path)
            tensors = load_file(path)
            return Outputs(tensors["features"], tensors["logits"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UndoorError(f"{path} holds no outputs: {first_line(error)}; remove it") from error


def digest(content: Mapping[str, Any]) -> str:
    """Return a hash of plain values; the order of the names does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def hardware() -> str:
    """Return the name of the accelerator, or of the processor with its numbers of cores and threads."""
    if torch.cuda.is_available():
        products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        operations = " and ".join([*["products"] * products, *["convolutions"] * convolutions])
        return f"{torch.cuda.get_device_name()}, float32 {f'as TF32 in {operations}' if operations else 'without TF32'}"
    names: list[str] = []
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
    name = next(iter(names), platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
