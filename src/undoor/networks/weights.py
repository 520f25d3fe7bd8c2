"""Networks in files: their weights and a description of the network, never code."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from undoor.errors import UndoorError, first_line
from undoor.networks.architectures import NETWORKS, build_network
from undoor.networks.onnx import load_onnx
from undoor.safe.limits import CLASSES, parse_json, require_file, require_names
from undoor.safe.pickles import CodeError
from undoor.safe.torch_files import load_tensors
from undoor.storage.atomic import atomic

EXECUTABLE = {".pkl", ".pickle", ".pt2", ".joblib", ".mar"}
"""Endings of files that run code when they are loaded."""

SHAPE_PIXELS = 2**20
"""Most pixels of an image that a file may state. The network's mean image has as many numbers for each channel."""


@dataclass(frozen=True)
class Architecture:
    """The description of a network that a weight file holds.

    Args:
        network: a key of ``NETWORKS`` or ``package.module:factory``. A factory is only noted and never called: a file
            must not decide which code is run, so that the caller of ``load_model`` has to name it.
        shape: (C, H, W) of the images that the network was trained on.
        class_names: names of the classes, in the order of the logits.
        recipe: how the network was trained, as plain values.

    """

    network: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    recipe: dict[str, Any]


def save_model(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Write weights and architecture to a ``.safetensors`` file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    described = json.dumps(architecture.__dict__, sort_keys=True)
    encoded = save(tensors, metadata={"undoor": described})
    with atomic(path) as temporary:
        temporary.write_bytes(encoded)


def read_architecture(path: Path) -> Architecture | None:
    """Return the description in a ``.safetensors`` file; None if undoor did not write it. A broken file is an error."""
    with _explained(path), safe_open(path, framework="pt") as file:
        described = (file.metadata() or {}).get("undoor")
        if described is None:
            return None
        fields = parse_json(described)
        channels, height, width = shape = fields["shape"]
        names, recipe = fields["class_names"], fields["recipe"]
        if not all(type(n) is int for n in shape) or channels not in (1, 3) or min(height, width) < 1:
            raise ValueError("the shape of its images is impossible")
        if height * width > SHAPE_PIXELS:
            raise ValueError(f"its images have more than {SHAPE_PIXELS:,} pixels")
        if not isinstance(names, list) or not names or not isinstance(recipe, dict):
            raise ValueError("it names no classes or no recipe")
        require_names(names, "class name", most=CLASSES)
        return Architecture(str(fields["network"]), (channels, height, width), tuple(names), recipe)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of a broken safetensors file into an ``UndoorError``."""
    try:
        require_file(path)
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UndoorError(
            f"{path} is not a whole safetensors file: {first_line(error)}; remove it or give another"
        ) from error


def load_model(path: str | Path, network: str | None = None) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Return a network with the weights in ``path``, and its class names; None if the file does not hold them.

    Args:
        path: a ``.safetensors`` file, a checkpoint that holds only tensors (``.pt``, ``.pth``, ``.bin``), or an
            ``.onnx`` file. Files that run code when they are loaded are refused.
        network: "resnet20", "small-cnn" or ``package.module:factory``, a function without arguments that returns the
            ``nn.Module``. It is not needed for ``.onnx`` files and for files that ``undoor train`` wrote.

    Raises:
        UndoorError: the file is missing, broken or holds code; the network is unknown or does not fit the weights.

    Examples:
        >>> import tempfile, undoor
        >>> from pathlib import Path
        >>> from undoor.networks.architectures import build_network
        >>> from undoor.networks.weights import Architecture, save_model
        >>> described = Architecture("small-cnn", (1, 8, 8), ("cat", "dog"), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(build_network("small-cnn", (1, 8, 8), 2), described, Path(folder, "victim.safetensors"))
        ...     model, class_names = undoor.load_model(Path(folder, "victim.safetensors"))
        >>> class_names
        ('cat', 'dog')

    """
    path = Path(path)
    if not path.is_file():
        raise UndoorError(f"{path} is no file; give the weights of a model, a .safetensors file")
    if path.suffix == ".onnx":
        if network is not None:
            raise UndoorError(f"{path} holds its network itself; leave --network {network} out")
        return load_onnx(path), None
    if path.suffix == ".safetensors":
        architecture = read_architecture(path)
        if network is not None and network not in NETWORKS:
            model = call_factory(network)
        elif architecture is not None and architecture.network in NETWORKS:
            model = build_network(architecture.network, architecture.shape, len(architecture.class_names))
        else:
            raise UndoorError(
                f"{path} was not written by undoor train, and does not say which network it belongs to; name a "
                "function that returns it with --network package.module:factory"
            )
        with _explained(path), safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        names = architecture.class_names if architecture else None
    else:
        weights, names = _tensors_only(path), None
        if network is None:
            raise UndoorError(f"{path} holds only weights; name their network with --network package.module:factory")
        model = call_factory(network)
    _require_same_types(model, weights, path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise UndoorError(f"the weights in {path} do not fit the network: {reasons[0][:200]}") from error
    return model, names


def require_same_classes(model_classes: Sequence[str] | None, data_classes: Sequence[str], path: Path | None) -> None:
    """Raise ``UndoorError`` if a network's class names are known and differ from those of the data, or in order."""
    if model_classes is not None and tuple(model_classes) != tuple(data_classes):
        raise UndoorError(
            f"{path} was trained for the classes {', '.join(model_classes[:10])}, the data has "
            f"{', '.join(data_classes[:10])}; take a model that was trained for these classes"
        )


def _require_same_types(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``UndoorError`` if weights are of another kind of number than the network's; PyTorch would convert them."""
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name in expected.keys() & weights.keys():
        if expected[name].is_floating_point() != weights[name].is_floating_point() or weights[name].is_sparse:
            raise UndoorError(
                f"the weights in {path} do not fit the network: {name} holds {weights[name].dtype}, not "
                f"{expected[name].dtype}; give the weights of this network"
            )


def _tensors_only(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names; refuse a file that holds anything else."""
    advice = (
        "save the weights alone, safetensors.torch.save_file(model.state_dict(), 'model.safetensors'), "
        "and name the network with --network"
    )
    refused = f"{path} is a pickled object: loading it would run code that it holds; {advice}"
    if path.suffix in EXECUTABLE:
        raise UndoorError(refused)
    try:
        weights = load_tensors(path)
    except CodeError as error:
        raise UndoorError(refused) from error
    except (OSError, ValueError) as error:
        raise UndoorError(f"{path} is no whole file of tensors: {first_line(error)}; {advice}") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UndoorError(f"{path} is no state_dict: it holds other things than tensors; save model.state_dict()")
    return {str(name): value for name, value in weights.items()}


def call_factory(name: str) -> nn.Module:
    """Import ``package.module:factory``, call it and return the network; anything but an ``nn.Module`` is an error."""
    module_name, _, factory_name = name.partition(":")
    if not factory_name or module_name.endswith(".py"):
        raise UndoorError(
            f"there is no network {name!r}; give one of {', '.join(NETWORKS)} or package.module:factory, such as "
            "mine:network for the function network in mine.py"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:  # a network is usually defined in a file beside the data, not in a package
        sys.path.append(folder)
    try:
        model = getattr(importlib.import_module(module_name), factory_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UndoorError(
            f"no network {name!r}: {first_line(error)}; give one of {', '.join(NETWORKS)} or "
            "package.module:factory, a function without arguments that returns the nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise UndoorError(f"{name} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model
