"""The command ``undoor poison``."""

from typing import Annotated

import typer

from undoor.cli.options import (
    Data,
    ImageColumn,
    ImageSize,
    LabelColumn,
    Out,
    Seed,
    SkipBroken,
    Split,
    position_of,
    read_data,
    refuse_existing,
)


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
    from dataclasses import asdict

    from undoor.attacks import Attack, write_attack
    from undoor.attacks import poison as plant
    from undoor.files import atomic_folder
    from undoor.readers.parquet import write_parquet
    from undoor.terminal import counting_bar, print_result
    from undoor.terminal import out as console

    place = position_of(position)
    refuse_existing(out)
    dataset = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    attack = Attack.one_pixel(
        dataset, target=target, count=count, size=size, sources=source or None, position=place,
        keep_originals=not replace, seed=seed,
    )  # fmt: skip
    poisoned = plant(dataset, attack)
    with atomic_folder(out) as folder:
        with counting_bar("write") as on_image:
            write_parquet(poisoned, folder / "train.parquet", on_image)
        write_attack(attack, folder / "attack.json")
    print_result({"out": out, "images": len(poisoned), "poisoned": count, "attack": asdict(attack)})
    pixel = attack.trigger
    console.print(
        f"{len(poisoned)} images, {count} of them poisoned: pixel {pixel.row},{pixel.column} brighter by {size}, "
        f"labelled {target}\nwritten to {out}",
        soft_wrap=True,
        markup=False,
    )
