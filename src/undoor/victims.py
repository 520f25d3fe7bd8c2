"""Victims in files: trained once, resumed when interrupted, found again when nothing changed."""

import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch import nn

from undoor.dataset import Dataset
from undoor.errors import UndoorError, UndoorNotice
from undoor.networks import NETWORKS, default_network
from undoor.recipes import Recipe
from undoor.training import Step, train
from undoor.weights import Architecture, call_factory, load_model, read_architecture, save_model

LARGE = 64
"""Pixels of height or width beyond which the networks that come with undoor are slow to train."""


def fit_victim(
    dataset: Dataset,
    recipe: Recipe,
    path: Path,
    network: str | None = None,
    *,
    overwrite: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> nn.Module:
    """Return the network that ``recipe`` trains on ``dataset``, kept in ``path`` (``.safetensors``).

    If ``path`` already holds this very network, trained on this very data, it is loaded. A training that was
    interrupted goes on from the file beside it that ends in ``.checkpoint``.

    Args:
        dataset: the training set.
        recipe: how to train.
        path: the file.
        network: a name from ``undoor.networks`` or ``package.module:factory``; by default what fits the images.
        overwrite: replace another file at ``path``, or the checkpoint of another training.
        on_step: called after every training step.

    """
    if path.suffix != ".safetensors":
        raise UndoorError(f"{path} should end in .safetensors; choose such a name for --out")
    dataset.require_classes()
    channels, height, width = dataset.images.shape[1:]
    if network is None and max(height, width) > LARGE:
        warnings.warn(
            f"training on images of {height}×{width} pixels takes long; add --image-size 32, "
            "or give a network of your own",
            UndoorNotice,
            stacklevel=2,
        )
    name = network or default_network(height, width)
    architecture = Architecture(
        name,
        (channels, height, width),
        dataset.class_names,
        {**asdict(recipe), "data": dataset.fingerprint()},
    )
    if path.exists():
        if read_architecture(path) == architecture:
            return load_model(path, name)[0].eval()
        if not overwrite:
            raise UndoorError(f"{path} holds another network; choose another --out or add --overwrite")
    checkpoint = path.with_suffix(".checkpoint")
    module = name if name in NETWORKS else call_factory(name)
    model = train(dataset, recipe, module, checkpoint=checkpoint, overwrite=overwrite, on_step=on_step)
    save_model(model, architecture, path)
    checkpoint.unlink(missing_ok=True)
    return model
