"""The command ``undoor train``."""

from pathlib import Path
from typing import Annotated

import typer

from undoor.cli.options import (
    Data,
    Epochs,
    ImageColumn,
    ImageSize,
    LabelColumn,
    LearningRate,
    Network,
    Overwrite,
    Preset,
    Seed,
    SkipBroken,
    Split,
    read_data,
)
from undoor.errors import UndoorError


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="the file for the network, .safetensors")],
    preset: Preset = "fast",
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    network: Network = None,
    test: Annotated[str | None, typer.Option(help="clean test DATA: print the accuracy")] = None,
    attack: Annotated[
        Path | None, typer.Option(help="attack.json of undoor poison: print its success on the test data too")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Train a network on DATA. An interrupted training resumes when the command is given again.

    Example: undoor train photos --test photos-test --out model.safetensors
    """
    from undoor.attacks import read_attack
    from undoor.cli import terminal
    from undoor.experiments.measure import measure
    from undoor.networks.recipes import long_enough, recipe
    from undoor.networks.victims import fit_victim

    chosen = recipe(preset, epochs=epochs, learning_rate=learning_rate, seed=seed)
    planned = None if attack is None else read_attack(attack)
    if planned is not None and test is None:
        raise UndoorError("--attack is measured on test images; add --test DATA")
    columns = {"image_column": image_column, "label_column": label_column, "image_size": image_size}
    dataset = read_data(data, split=split, skip_broken=skip_broken, **columns)
    test_set = None if test is None else read_data(test, split="test", skip_broken=skip_broken, **columns)
    chosen = chosen if epochs is not None else long_enough(chosen, len(dataset))
    with terminal.stages("train") as bar:
        model = fit_victim(dataset, chosen, out, network, overwrite=overwrite, on_step=bar.training())
    terminal.out.print(f"network: {out}", soft_wrap=True, markup=False)
    success = None
    if test_set is not None:
        with terminal.counting_bar("measure") as on_image:
            success = measure(model, test_set, planned, on_image)
    terminal.print_result({"network": out, **(success or {})})
    if success is not None:
        terminal.print_success(success)
