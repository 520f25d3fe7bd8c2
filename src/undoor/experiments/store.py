"""Results on disk: plain files that know, by a hash, what they depend on.

A stage asks for its file by what it depends on; if the file is there, the work is done. Files are whole or not
there and refer to no path: two stores are merged by copying one into the other.
"""

import ast
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from undoor.errors import UndoorError, first_line
from undoor.evidence import Outputs
from undoor.safe.limits import read_json, require_file
from undoor.storage.atomic import atomic, write_text

Result = dict[str, Any]


def digest(content: Mapping[str, Any]) -> str:
    """Return a hash of plain values."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


@cache
def code_digest(*modules: ModuleType) -> str:
    """Return a hash of what modules do: of their syntax trees without comments and docstrings."""
    texts = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules]
    return digest({"code": [_syntax(ast.parse(text)) for text in texts]})


def _syntax(node: Any) -> Any:
    """Return a syntax tree as plain values, the same in every version of Python: what is empty is left out."""
    if isinstance(node, list):
        return [_syntax(part) for part in node if not _is_text(part)]
    if isinstance(node, ast.AST):
        if isinstance(node, ast.JoinedStr):  # Python 3.12 ends a format with an empty constant
            node.values = [part for part in node.values if not isinstance(part, ast.Constant) or part.value]
        fields = {name: _syntax(value) for name, value in ast.iter_fields(node)}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    return node if isinstance(node, str | int | float | bool | None) else repr(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@dataclass(frozen=True)
class Store:
    """A folder of results.

    ``victims`` holds each network (``.safetensors``) and what was measured of it (``.json``), named by a hash of
    its training set and recipe. ``findings`` holds what each contender found, named by victim and contender;
    ``examined`` what defences of other moments did, named by victim and examination.
    ``retrained`` holds what was measured of networks trained without what was flagged, named by a hash of victim
    and flagged samples. ``cache`` holds what can be made again and is not worth keeping: outputs of networks on
    the training images, and trainings that were interrupted.
    """

    root: Path

    def path(self, stage: str, key: str, suffix: str = ".json") -> Path:
        """Return where the file of a stage lies."""
        return self.root / stage / f"{key}{suffix}"

    def read(self, stage: str, key: str) -> Result | None:
        """Return a result, or None if it has not been made."""
        path = self.path(stage, key)
        if not path.exists():
            return None
        try:
            content: Result = read_json(path)
        except (OSError, ValueError) as error:
            raise UndoorError(f"{path} is no result: {first_line(error)}; remove it, and it is made again") from error
        return content

    def write(self, stage: str, key: str, result: Result) -> Result:
        """Keep a result; return it as it will be read."""
        # A line for every entry: short, and a change of one shows as a change of one.
        lines = [
            f"{json.dumps(name)}: {json.dumps(result[name], sort_keys=True, ensure_ascii=False, allow_nan=False)}"
            for name in sorted(result)
        ]
        text = "{\n" + ",\n".join(lines) + "\n}"
        write_text(self.path(stage, key), text + "\n")
        content: Result = json.loads(text)
        return content

    def all(self, stage: str) -> dict[str, Result]:
        """Return every result of a stage by its key, in the order of the keys."""
        keys = sorted(path.stem for path in (self.root / stage).glob("*.json"))
        return {key: self.read(stage, key) or {} for key in keys}

    def has_outputs(self, key: str) -> bool:
        """Whether outputs are cached."""
        return self.path("cache", key, ".outputs").exists()

    def keep_outputs(self, key: str, outputs: Outputs) -> None:
        """Cache outputs of a network."""
        ignore = self.root / "cache" / ".gitignore"
        if not ignore.exists():
            write_text(ignore, "*\n")
        with atomic(self.path("cache", key, ".outputs")) as temporary:
            temporary.write_bytes(save({"features": outputs.features, "logits": outputs.logits}))

    def outputs(self, key: str) -> Outputs:
        """Return cached outputs."""
        path = self.path("cache", key, ".outputs")
        try:
            require_file(path)
            tensors = load_file(path)
            return Outputs(tensors["features"], tensors["logits"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UndoorError(f"{path} holds no outputs: {first_line(error)}; remove it") from error


def hardware() -> str:
    """Return what computes: the accelerator, or the processor and the number of threads."""
    if torch.cuda.is_available():
        products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        told = " and ".join([*["products"] * products, *["convolutions"] * convolutions])
        return f"{torch.cuda.get_device_name()}, float32 {f'as TF32 in {told}' if told else 'without TF32'}"
    names: list[str] = []
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
    name = next(iter(names), platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def pack(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    """Return a mask as hexadecimal text, eight samples a byte."""
    return np.packbits(mask).tobytes().hex()


def unpack(text: str, n: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the mask of ``n`` samples that ``pack`` made text of."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n)
    return bits.astype(np.bool_)
