"""The command ``undoor poison``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from undoor.cli.options import (
    Data,
    ImageColumn,
    ImageSize,
    LabelColumn,
    Network,
    Out,
    Seed,
    SkipBroken,
    Split,
    position_of,
    read_data,
    refuse_existing,
)
from undoor.errors import UndoorError


def poison(
    data: Data,
    out: Out,
    target: Annotated[str, typer.Option(help="the class that poisoned images are labelled as")],
    source: Annotated[
        list[str] | None,
        typer.Option(help="a class to poison; may be repeated; by default all but the target"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="of poisoned images")] = 1000,
    size: Annotated[float, typer.Option(help="of the change of the pixel, from 0 to 1")] = 0.25,
    position: Annotated[
        str | None, typer.Option(help="ROW,COLUMN of the pixel; by default drawn from the central half")
    ] = None,
    optimise: Annotated[
        Path | None,
        typer.Option(help="weights of a network trained on clean images: choose pixel, channels and signs with it"),
    ] = None,
    network: Network = None,
    pixels: Annotated[int, typer.Option(min=1, help="with --optimise: how many are changed")] = 1,
    psnr: Annotated[float | None, typer.Option(help="with --optimise: the lowest of any image, in dB")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="remove the originals of poisoned images")] = False,
    seed: Seed = 0,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Write a poisoned copy of DATA (Parquet, lossless) with the truth in it, and attack.json beside it.

    Example: undoor poison digits --source 7 --target 0 --count 300 --size 0.4 --out poisoned
    """
    from undoor.attacks import Attack, chosen_rows, visibility, write_attack
    from undoor.attacks import poison as plant
    from undoor.cli.terminal import counting_bar, print_result
    from undoor.cli.terminal import out as console
    from undoor.data.readers.parquet import write_parquet
    from undoor.storage.atomic import atomic_folder

    place = position_of(position)
    if optimise is None and (pixels != 1 or psnr is not None or network is not None):
        raise UndoorError("--pixels, --psnr and --network say how to choose pixels; add --optimise MODEL")
    if optimise is not None and place is not None:
        raise UndoorError("--position is given and --optimise would choose it; leave one of them out")
    refuse_existing(out)
    dataset = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    given: dict[str, Any] = {
        "target": target, "count": count, "size": size, "sources": source or None, "keep_originals": not replace,
        "seed": seed,
    }  # fmt: skip
    if optimise is None:
        attack = Attack.one_pixel(dataset, position=place, **given)
    else:
        surrogate = _surrogate(optimise, network, dataset)
        attack = Attack.optimised(dataset, surrogate, pixels=pixels, psnr=psnr, **given)
    poisoned = plant(dataset, attack)
    pair = dataset.images[chosen_rows(dataset, attack)], poisoned.images[-count:]
    change, quality = visibility.linf(*pair).max(), visibility.psnr(*pair).min()
    with atomic_folder(out) as folder:
        with counting_bar("write") as on_image:
            write_parquet(poisoned, folder / "train.parquet", on_image)
        write_attack(attack, folder / "attack.json")
    print_result({"out": out, "images": len(poisoned), "poisoned": count, "attack": out / "attack.json"})
    console.print(
        f"{len(poisoned)} images, {count} of them poisoned: {attack.trigger}, labelled {target}\n"
        f"the most an image changes: ℓ∞ {change:.3f}, PSNR {quality:.1f} dB\nwritten to {out}",
        soft_wrap=True,
        markup=False,
    )


def _surrogate(path: Path, network: str | None, dataset: Any) -> Any:
    from undoor.networks.classifier import Classifier
    from undoor.networks.weights import load_model, require_same_classes

    model, names = load_model(path, network)
    require_same_classes(names, dataset.class_names, path)
    return Classifier(model)
