"""The command ``undoor poison``."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from undoor.cli.options import Data, Network, ReadingOptions, Seed, refuse_existing
from undoor.cli.values import position as parse_position
from undoor.errors import UndoorError


def poison(
    data: Data,
    *,
    out: Annotated[Path, Option(help="New folder for the poisoned images.")],
    target: Annotated[str, Option(help="The target class, which is the label of the poisoned images.")],
    source: Annotated[
        list[str] | None, Option(help="A source class. May be repeated. By default all classes but the target.")
    ] = None,
    count: Annotated[int, Option(min=1, metavar="N", help="Number of poisoned images.")] = 1000,
    size: Annotated[float, Option(help="How much the trigger changes a pixel, from 0 to 1.")] = 0.25,
    position: Annotated[
        str | None, Option(metavar="ROW,COLUMN", help="Pixel of the trigger. By default a random central one.")
    ] = None,
    optimise: Annotated[
        Path | None, Option(help="Weights trained on clean images, to choose pixels, channels and signs with.")
    ] = None,
    network: Network = None,
    pixels: Annotated[int, Option(min=1, metavar="N", help="With --optimise: pixels in the trigger.")] = 1,
    psnr: Annotated[float | None, Option(help="With --optimise: lowest PSNR of a poisoned image, in dB.")] = None,
    replace: Annotated[bool, Option("--replace", help="Leave out the originals of the poisoned images.")] = False,
    seed: Seed = 0,
    reading: ReadingOptions,
) -> None:
    """Write a poisoned copy of DATA, for experiments.

    The copy is lossless Parquet, which also says which images are poisoned. The file attack.json beside it describes
    the attack.

    Example: undoor poison digits --source 7 --target 0 --count 300 --size 0.4 --out poisoned
    """
    from undoor.attacks import Attack, chosen_rows, visibility, write_attack
    from undoor.attacks import poison as plant
    from undoor.cli import terminal
    from undoor.data.readers.parquet import write_parquet
    from undoor.storage.atomic import atomic_folder

    pixel = parse_position(position)
    if optimise is None and (pixels != 1 or psnr is not None or network is not None):
        raise UndoorError("--pixels, --psnr and --network serve to optimise the trigger; add --optimise MODEL")
    if optimise is not None and pixel is not None:
        raise UndoorError("--position is given, but --optimise chooses it; leave one of them out")
    refuse_existing(out)
    dataset = reading.read(data)
    settings: dict[str, Any] = {
        "target": target, "count": count, "size": size, "sources": source or None, "keep_originals": not replace,
        "seed": seed,
    }  # fmt: skip
    if optimise is None:
        attack = Attack.one_pixel(dataset, position=pixel, **settings)
    else:
        surrogate = _load_surrogate(optimise, network, dataset)
        attack = Attack.optimised(dataset, surrogate, pixels=pixels, psnr=psnr, **settings)
    poisoned = plant(dataset, attack)
    before_and_after = dataset.images[chosen_rows(dataset, attack)], poisoned.images[-count:]
    largest_change = visibility.linf(*before_and_after).max()
    lowest_psnr = visibility.psnr(*before_and_after).min()
    with atomic_folder(out) as folder:
        with terminal.counting_bar("write") as on_image:
            write_parquet(poisoned, folder / "train.parquet", on_image)
        write_attack(attack, folder / "attack.json")
    terminal.print_result({"out": out, "images": len(poisoned), "poisoned": count, "attack": out / "attack.json"})
    terminal.print_line(
        f"{len(poisoned)} images, {count} of them poisoned: {attack.trigger}, labelled {target}\n"
        f"largest change of an image: ℓ∞ {largest_change:.3f}, PSNR {lowest_psnr:.1f} dB\nwritten to {out}"
    )


def _load_surrogate(path: Path, network: str | None, dataset: Any) -> Any:
    """Return the network that optimises the trigger; raise if its classes are not those of the data set."""
    from undoor.networks.classifier import Classifier
    from undoor.networks.weights import load_model, require_same_classes

    model, class_names = load_model(path, network)
    require_same_classes(class_names, dataset.class_names, path)
    return Classifier(model)
